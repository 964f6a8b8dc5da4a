use super::Options;
use super::suites::{Outcome, suite};
use std::path::Path;

#[test]
fn results_and_skips_are_counted() {
    let stdout = "running 3 tests\ntest a ... ok\n\ntest result: ok. 5 passed; 0 failed; \
                  2 ignored; 0 measured; 0 filtered out; finished in 0.01s\n";
    let stderr = "noise\nskipped test m::a: no C++ compiler\ntest b ... skipped test m::b: \
                  ../shared is absent\nskipped test m::a: no C++ compiler\n";
    let outcome = Outcome::of("hone-x y", stdout, stderr);
    assert_eq!(outcome.to_string(), "3 passed, 0 failed, 4 skipped");
    assert!(outcome.is_good(false) && !outcome.is_good(true));
    let only_shared = Outcome::of("hone-x y", stdout, "skipped test b: ../shared is absent");
    assert!(only_shared.is_good(true));
}

#[test]
fn a_suite_that_fails_or_ends_without_a_result_is_a_failure() {
    let failed = "test result: FAILED. 5 passed; 2 failed; 0 ignored; 0 measured";
    assert_eq!(Outcome::of("s", failed, "").to_string(), "5 passed, 2 failed, 0 skipped");
    assert!(!Outcome::of("s", failed, "").is_good(false));
    assert!(!Outcome::of("s", "running 5 tests\n", "").is_good(false));
}

#[test]
fn test_binaries_are_found_in_cargos_messages() {
    let message = |is_test: bool, id: &str| {
        format!(
            r#"{{"reason":"compiler-artifact","package_id":"path+file:///w/{id}",
            "manifest_path":"/w/a/Cargo.toml","target":{{"name":"cli"}},
            "profile":{{"test":{is_test}}},"executable":"/w/target/cli-1"}}"#
        )
        .replace('\n', "")
    };
    let found = suite(&message(true, "crates/cli#hone-cli@0.1.0")).unwrap();
    assert_eq!(
        (found.name.as_str(), found.package_dir.as_path()),
        ("hone-cli cli", Path::new("/w/a"))
    );
    assert_eq!(suite(&message(true, "a#0.1.0")).unwrap().name, "a cli");
    assert_eq!(suite(&message(false, "a#0.1.0")), None);
    assert_eq!(suite("   Compiling a"), None);
}

#[test]
fn options_are_read() {
    let both = Options { full: true, strict: true };
    assert_eq!(Options::parse(&["--strict", "--full"]), Some(both));
    assert_eq!(Options::parse(&[]), Some(Options::default()));
    assert_eq!(Options::parse(&["--fast"]), None);
}
