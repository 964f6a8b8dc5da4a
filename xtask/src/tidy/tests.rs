use super::circles;
use super::crates::{self, Krate};
use super::goldens;
use super::source::{self, Source};
use super::*;

fn source(path: &str, text: &str) -> Source {
    Source { path: path.to_owned(), text: text.to_owned() }
}

fn messages(findings: impl IntoIterator<Item = Finding>) -> Vec<String> {
    findings.into_iter().map(|finding| finding.to_string()).collect()
}

/// The findings of one file, without the header's.
fn found_in(path: &str, text: &str) -> Vec<String> {
    let header = if path.ends_with(".rs") { "//! Header.\n" } else { "" };
    messages(source::check(&source(path, &format!("{header}{text}"))))
}

fn found_in_crate(name: &str, package: &str, dependencies: &[&str], lints: &str) -> Vec<String> {
    let dependencies = dependencies.iter().map(|&name| name.to_owned()).collect();
    let (name, package) = (name.to_owned(), package.to_owned());
    let manifest = format!("[package]\n\n{lints}\n");
    let features = Vec::new();
    messages(crates::check(&Krate { name, package, dependencies, features, manifest }))
}

#[test]
fn sizes_at_the_limit_pass_and_above_it_fail() {
    assert_eq!(found_in("a.py", &"x\n".repeat(600)), [""; 0]);
    assert_eq!(
        found_in("a.py", &"x\n".repeat(601)),
        ["a.py:1: the file has 601 lines, at most 600: split it"]
    );
    let family = "crates/model/src/families/a.rs";
    assert_eq!(found_in(family, &"x\n".repeat(249)), [""; 0]);
    let message = ":1: the file has 251 lines, at most 250: split it";
    assert_eq!(found_in(family, &"x\n".repeat(250)), [format!("{family}{message}")]);
    assert_eq!(found_in("a.rs", &"é".repeat(100)), [""; 0]);
    assert_eq!(
        found_in("a.rs", &"é".repeat(101)),
        ["a.rs:2: the line has 101 columns, at most 100: break it"]
    );
}

#[test]
fn only_addresses_may_be_long() {
    let address = format!("https://example.org/{}", "a".repeat(100));
    assert_eq!(found_in("a.rs", &format!("// see {address}")), [""; 0]);
    assert_eq!(found_in("a.rs", &format!("// {} {address}", "a".repeat(100))).len(), 1);
}

#[test]
fn some_lints_are_not_silenced() {
    let allow = ["#![allow(unsafe", "_code)]"].concat();
    assert_eq!(found_in("crates/kernels/src/lib.rs", &allow), [""; 0]);
    for path in ["crates/model/src/lib.rs", "crates/kernels/src/a.rs"] {
        let found = found_in(path, &allow);
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with(&format!("{path}:2: unsafe code belongs in")));
    }
    let allow = ["#[allow(clippy::too_many", "_lines)]"].concat();
    assert_eq!(found_in("crates/a/src/a.rs", &allow), ["crates/a/src/a.rs:2: split the function"]);
}

#[test]
fn names_that_say_nothing_are_refused() {
    for path in ["crates/data/src/utils.rs", "crates/data/src/misc/mod.rs", "scripts/helpers.py"] {
        let found = found_in(path, "");
        assert_eq!(found.len(), 1, "{path}: {found:?}");
        assert!(found[0].contains("says nothing of what is inside"));
    }
    assert_eq!(found_in("crates/a/src/a.rs", "    pub mod common {\n}\n").len(), 1);
    assert_eq!(found_in("crates/a/src/base_precision.rs", "let base = 1;"), [""; 0]);
}

#[test]
fn unfinished_work_is_refused() {
    let word = ["TO", "DO"].concat();
    assert_eq!(
        found_in("crates/a/src/a.rs", &format!("// {word}: later\n")),
        [format!("crates/a/src/a.rs:2: `{word}`: do it now, or open an issue and remove the mark")]
    );
    assert_eq!(found_in("scripts/a.py", &format!("x = 1  # {word}\n")).len(), 1);
    assert_eq!(found_in("crates/a/src/a.rs", &format!("// {word}S\n")), [""; 0]);
}

#[test]
fn every_module_has_a_header() {
    let found = messages(source::check(&source("crates/a/src/a.rs", "use x;\n")));
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with("crates/a/src/a.rs:1: no header"));
    assert_eq!(messages(source::check(&source("crates/a/src/tests.rs", "use x;\n"))), [""; 0]);
}

#[test]
fn dependencies_go_one_way() {
    let lints = "[lints]\nworkspace = true";
    let found = |name: &str, dependencies: &[&str]| {
        found_in_crate(name, &format!("hone-{name}"), dependencies, lints)
    };
    assert_eq!(found("model", &["hone-tensor", "serde"]), [""; 0]);
    assert_eq!(
        found("model", &["hone-train"]),
        ["crates/model/Cargo.toml:1: `model` may not depend on `train` (it may use: tensor): \
          move the code to the crate that may, or pass what is needed in"]
    );
    assert_eq!(found("data", &["hone-model"]).len(), 1);
    assert_eq!(found("cli", &["hone-kernels"]), [""; 0]);
    assert!(found("other", &[])[0].contains("add its row to MAY_DEPEND_ON"));
}

#[test]
fn crates_take_the_lints_and_their_folders_name() {
    assert_eq!(
        found_in_crate("data", "data", &[], ""),
        [
            "crates/data/Cargo.toml:1: a crate is called after its folder: name it `hone-data`",
            "crates/data/Cargo.toml:1: the workspace's lints are not taken: \
             add `[lints]` with `workspace = true`"
        ]
    );
}

/// A feature for tests that another crate switched on would end in the binary.
#[test]
fn features_for_tests_stay_there() {
    let mut crates = crates::read_all(&crate::workspace_root()).unwrap();
    let train = crates.iter_mut().find(|krate| krate.name == "train").unwrap();
    assert_eq!(messages(crates::check(train)), [""; 0]);
    train.features.push("testing".to_owned());
    assert_eq!(
        messages(crates::check(train)),
        ["crates/train/Cargo.toml:1: the feature `testing` is for tests: \
          switch it on under `[dev-dependencies]`"]
    );
}

/// What cargo says of this very workspace is understood.
#[test]
fn crates_are_read() {
    let crates = crates::read_all(&crate::workspace_root()).unwrap();
    let tensor = crates.iter().find(|krate| krate.name == "tensor").unwrap();
    assert_eq!(tensor.package, "hone-tensor");
    assert!(tensor.dependencies.iter().any(|name| name == "hone-kernels"));
    assert!(crates.iter().all(|krate| krate.name != "xtask"));
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
    let read = |(path, text): &(&str, &str)| source(&format!("crates/a/src/{path}"), text);
    let sources: Vec<Source> = files.iter().map(read).collect();
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
    let by_way = ("y.rs", "use crate::A;\n#[cfg(test)]\nmod tests {\n    use crate::x::A;\n}\n");
    assert_eq!(circles_of(&[root, x, z, by_way], ""), [""; 0]);
}

#[test]
fn golden_files_stay_small() {
    assert!(goldens::check(4 << 20).is_none());
    assert!(goldens::check((4 << 20) + 1).is_some_and(|found| found.message.contains("4194305")));
}
