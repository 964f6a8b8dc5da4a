use super::options::Options;
use std::time::Duration;

#[test]
fn arguments() {
    let options =
        Options::parse(&["1", "--only", "8B,suites", "--peer-seconds", "30"]).expect("known");
    assert_eq!((options.device.as_str(), options.peer_limit), ("1", Duration::from_secs(30)));
    assert!(options.wants("8B") && options.runs_suites() && !options.wants("1B"));
    let emulated = Options::parse(&["emulated"]).expect("known");
    assert!(emulated.runs_suites() && !emulated.trains());
    let tiny = Options::parse(&["--tiny"]).expect("known");
    assert!(tiny.trains() && !tiny.runs_suites());
    let error = |args: &[&str]| Options::parse(args).expect_err("unknown");
    assert_eq!(error(&["--out"]), "--out wants a value");
    assert_eq!(error(&["--fast"]), "unknown argument `--fast`");
    assert!(error(&["--only", "9B"]).contains("suites, 8B, gsm8k, 1B"));
}
