use super::circles;
use super::content;
use super::crates::{self, Krate};
use super::goldens;
use super::sizes;
use super::source::{self, Source};
use super::*;

fn messages(findings: impl IntoIterator<Item = Finding>) -> Vec<String> {
    findings.into_iter().map(|finding| finding.to_string()).collect()
}

/// The findings of one file's content, without the header's.
fn content_of(path: &str, text: &str) -> Vec<String> {
    messages(content::check(&Source::new(path, &format!("//! Header.\n{text}"))))
}

fn sizes_of(path: &str, text: &str, exceptions: &str) -> Vec<String> {
    messages(sizes::check(&[Source::new(path, text)], "exceptions.txt", exceptions))
}

fn manifest_of(name: &str, tables: &str) -> Vec<String> {
    let manifest = format!("[package]\nname = \"hone-{name}\"\n{tables}");
    messages(crates::check_manifest(&Krate { name: name.to_owned(), manifest }))
}

fn function_of(num_lines: usize) -> String {
    format!("fn long() {{\n{}}}\n", "    step();\n".repeat(num_lines - 2))
}

#[test]
fn strings_comments_and_characters_are_told_apart() {
    let text = concat!(
        "let a = \"// no } comment\"; // yes\n",
        "let b = r#\"a \" { quote\"#; /* in /* nested */ still */ let c = '{';\n",
        "let d: &'static str = br\"\\\"; let e = '\\''; let f = \"\\\" {\n",
        "second }\"; g(b\"x\", \"\\\\\"); }\n",
    );
    let lines = source::split(text);
    let code: Vec<&str> = lines.iter().map(|line| line.code.as_str()).collect();
    assert_eq!(
        code,
        [
            "let a = \"\"; ",
            "let b = r#\"\"#;  let c = ;",
            "let d: &'static str = br\"\"; let e = ; let f = \"",
            "\"; g(b\"\", \"\"); }",
        ]
    );
    assert_eq!(lines[0].comment, "// yes");
    assert_eq!(lines[1].comment, "/* in /* nested */ still */");
}

#[test]
fn functions_are_found_with_their_lengths() {
    let text = "trait T {\n    fn none(&self, f: fn(u8) -> [u8; 2]);\n}\n\
                fn outer(\n    x: u8,\n) -> [u8; 2] {\n    fn inner() {}\n    S { x: '}' };\n}\n";
    let found: Vec<(String, usize, usize)> = source::functions(&source::split(text))
        .into_iter()
        .map(|f| (f.name, f.line, f.num_lines))
        .collect();
    assert_eq!(found, [("outer".to_owned(), 4, 6), ("inner".to_owned(), 7, 1)]);
}

#[test]
fn sizes_at_the_limit_pass_and_above_it_fail() {
    assert_eq!(sizes_of("a.rs", &function_of(70), ""), [""; 0]);
    assert_eq!(
        sizes_of("a.rs", &function_of(71), ""),
        ["a.rs:1: function `long` has 71 lines, at most 70: split it"]
    );
    assert_eq!(sizes_of("a.py", &"x\n".repeat(600), ""), [""; 0]);
    assert_eq!(
        sizes_of("a.py", &"x\n".repeat(601), ""),
        ["a.py:1: the file has 601 lines, at most 600: split it by topic"]
    );
    assert_eq!(sizes_of("a.rs", &"é".repeat(100), ""), [""; 0]);
    assert_eq!(
        sizes_of("a.rs", &format!("\n{}", "é".repeat(101)), ""),
        ["a.rs:2: the line has 101 columns, at most 100: break it"]
    );
}

#[test]
fn only_addresses_in_comments_may_be_long() {
    let address = format!("https://example.org/{}", "a".repeat(100));
    assert_eq!(sizes_of("a.rs", &format!("// see {address}"), ""), [""; 0]);
    assert_eq!(sizes_of("a.rs", &format!("let a = \"{address}\";"), "").len(), 1);
    assert_eq!(sizes_of("a.rs", &format!("// {} {address}", "a".repeat(100)), "").len(), 1);
}

#[test]
fn exceptions_only_shrink() {
    let text = function_of(80);
    assert_eq!(sizes_of("a.rs", &text, "# why\na.rs: function: 80\n"), [""; 0]);
    assert_eq!(
        sizes_of("a.rs", &text, "a.rs: function: 79"),
        ["a.rs:1: function `long` has 80 lines, at most 79: split it"]
    );
    assert_eq!(
        sizes_of("a.rs", &text, "a.rs: function: 81"),
        ["exceptions.txt:1: `a.rs: function` allows 81, the figure is 80: lower it"]
    );
    assert_eq!(
        sizes_of("a.rs", &function_of(70), "\na.rs: function: 80"),
        ["exceptions.txt:2: `a.rs: function` is not needed any more: remove this line"]
    );
    assert_eq!(
        sizes_of("a.rs", "", "gone.rs: file: 700"),
        ["exceptions.txt:1: `gone.rs` is not a source file here: remove this line"]
    );
}

#[test]
fn exceptions_must_be_readable() {
    for line in ["a.rs: function", "a.rs: method: 80", "a.rs: function: many", "a.rs: file: 1: 2"] {
        assert_eq!(
            sizes_of("a.rs", "", line),
            ["exceptions.txt:1: expected `path: function|file|column: limit`"]
        );
    }
    let twice = sizes_of("a.rs", &function_of(80), "a.rs: function: 80\na.rs: function: 80");
    assert_eq!(
        twice,
        ["exceptions.txt:2: this path and kind stand here twice: keep the smaller limit"]
    );
}

#[test]
fn unsafe_code_is_only_in_its_crates_and_with_a_reason() {
    let block = "fn f() {\n    unsafe { g() }\n}\n";
    assert_eq!(content_of("crates/kernels/src/a.rs", block), [""; 0]);
    let found = content_of("crates/model/src/a.rs", block);
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with("crates/model/src/a.rs:3: unsafe code belongs in"));
    assert_eq!(content_of("crates/model/src/a.rs", "// unsafe\nlet a = \"unsafe\";"), [""; 0]);

    let bare = "struct A;\nunsafe impl Send for A {}\n";
    assert_eq!(
        content_of("crates/tensor/src/a.rs", bare),
        ["crates/tensor/src/a.rs:3: `unsafe impl` without a reason: \
          write `// SAFETY: why it holds` above"]
    );
    let reasoned = "// SAFETY: no pointers,\n// none.\n#[cfg(unix)]\nunsafe impl Send for A {}\n";
    assert_eq!(content_of("crates/tensor/src/a.rs", reasoned), [""; 0]);
    let elsewhere = "// SAFETY: another.\nstruct A;\nunsafe impl Send for A {}\n";
    assert_eq!(content_of("crates/tensor/src/a.rs", elsewhere).len(), 1);
}

#[test]
fn names_that_say_nothing_are_refused() {
    for path in ["crates/data/src/utils.rs", "crates/data/src/misc/mod.rs", "scripts/helpers.py"] {
        let found = content_of(path, "");
        assert_eq!(found.len(), 1, "{path}: {found:?}");
        assert!(found[0].contains("says nothing of what is inside"));
    }
    assert_eq!(content_of("crates/a/src/a.rs", "mod common {\n}\n").len(), 1);
    assert_eq!(content_of("crates/a/src/base_precision.rs", "let base = 1;"), [""; 0]);
}

#[test]
fn unfinished_work_is_refused() {
    let word = ["TO", "DO"].concat();
    assert_eq!(
        content_of("crates/a/src/a.rs", &format!("// {word}: later\n")),
        [format!("crates/a/src/a.rs:2: `{word}`: do it now, or open an issue and remove the mark")]
    );
    assert_eq!(content_of("scripts/a.py", &format!("x = 1  # {word}\n")).len(), 1);
    assert_eq!(
        content_of("crates/a/src/a.rs", &format!("// {word}S\nlet a = \"{word}\";")),
        [""; 0]
    );
    assert_eq!(
        content_of("crates/a/src/a.rs", "fn f() { todo!() }"),
        ["crates/a/src/a.rs:2: `todo!` must not be committed: finish or remove it"]
    );
    assert_eq!(content_of("crates/a/src/a.rs", "let todo = !done;"), [""; 0]);
}

#[test]
fn every_module_has_a_header() {
    let bare = Source::new("crates/a/src/a.rs", "use x;\n");
    let found = messages(content::check(&bare));
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with("crates/a/src/a.rs:1: no header"));
    assert_eq!(
        messages(content::check(&Source::new("crates/a/src/tests.rs", "use x;\n"))),
        [""; 0]
    );
}

#[test]
fn dependencies_go_one_way() {
    let lints = "[lints]\nworkspace = true\n";
    let good = format!("{lints}[dependencies]\nhone-tensor.workspace = true\nserde = \"1\"\n");
    assert_eq!(manifest_of("model", &good), [""; 0]);
    let bad = format!("{lints}[dependencies]\nhone-train = {{ path = \"../train\" }}\n");
    assert_eq!(
        manifest_of("model", &bad),
        ["crates/model/Cargo.toml:6: `model` may not depend on `train` (it may use: tensor): \
          move the code to the crate that may, or pass what is needed in"]
    );
    let table = format!("{lints}[target.'cfg(unix)'.dev-dependencies.hone-model]\n");
    assert_eq!(manifest_of("data", &table).len(), 1);
    assert_eq!(manifest_of("cli", &format!("{lints}[dependencies]\nhone-kernels = 1\n")), [""; 0]);
}

#[test]
fn crates_take_the_lints_and_their_folders_name() {
    assert_eq!(
        manifest_of("data", ""),
        ["crates/data/Cargo.toml:1: the workspace's lints are not taken: \
          add `[lints]` with `workspace = true`"]
    );
    assert_eq!(manifest_of("kernels", ""), [""; 0]);
    let lints = "[lints]\nworkspace = true\n";
    assert_eq!(
        manifest_of("data", &format!("{lints}[package]\nname = \"data\"\n")),
        ["crates/data/Cargo.toml:6: a crate is called after its folder: name it `hone-data`"]
    );
    assert!(manifest_of("other", lints)[0].contains("add its row to MAY_DEPEND_ON"));
}

#[test]
fn documents_exist_and_the_map_names_every_crate() {
    assert!(crates::check_document("CHANGELOG.md", " \n").is_some());
    assert!(crates::check_document("CHANGELOG.md", "# Changelog").is_none());
    assert!(crates::check_map("data", "| `data` | sources |").is_none());
    assert_eq!(
        messages(crates::check_map("data", "the data")),
        ["ARCHITECTURE.md:1: crate `data` is not on the map: \
          add what it does and may depend on"]
    );
}

fn circles_of(files: &[(&str, &str)], list: &str) -> Vec<String> {
    let source = |(path, text): &(&str, &str)| Source::new(&format!("crates/a/src/{path}"), text);
    let sources: Vec<Source> = files.iter().map(source).collect();
    messages(circles::check(&sources, "list.txt", list))
}

#[test]
fn modules_that_use_each_other_are_found() {
    let circle = "crates/a/src/x.rs:1: modules use each other in a circle: x, y/z: move what both \
                  need to where neither uses the other";
    let root = ("lib.rs", "mod x; mod y;");
    let y = ("y/mod.rs", "mod z; use self::z::B;");
    for (x, z) in [
        ("use crate::y::z::B;", "use crate::x::A;"),
        ("use crate::{other, y::{C, z::{B as D}}};", "use super::super::x::{self, A};"),
        ("fn f() { crate::y::z::f() }", "fn f(a: super::super::x::A) {}"),
    ] {
        let files = [root, ("x.rs", x), y, ("y/z.rs", z)];
        assert_eq!(circles_of(&files, ""), [circle], "{x} {z}");
        assert_eq!(circles_of(&files, "# why\na: x y/z"), [""; 0]);
        assert_eq!(
            circles_of(&files, "a: x y/z w"),
            ["list.txt:1: `w` is in no such circle any more: remove it here"]
        );
        assert_eq!(circles_of(&files, "b: x y/z").len(), 3);
    }
}

#[test]
fn parents_tests_and_one_way_uses_are_no_circles() {
    let root = ("lib.rs", "mod x; mod y; pub use x::A;");
    let x = ("x/mod.rs", "mod z; use z::B; pub struct A;");
    let z = ("x/z.rs", "use super::A; use crate::y::C;");
    let y = ("y.rs", "#[cfg(test)]\nstatic S: [u8; 1] = [crate::x::N];\n// use crate::x::A;\n");
    assert_eq!(circles_of(&[root, x, z, y, ("y/tests.rs", "use crate::x::A;")], ""), [""; 0]);
    let by_way = ("y.rs", "use crate::A; fn f() { let x = \"crate::x::A\"; }");
    assert_eq!(circles_of(&[root, x, z, by_way], ""), [""; 0]);
}

#[test]
fn golden_files_stay_small() {
    assert!(goldens::check(4 << 20).is_none());
    assert!(goldens::check((4 << 20) + 1).is_some_and(|found| found.message.contains("4194305")));
}
