use super::digest::{of_losses, of_weights};
use super::*;

fn file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

#[test]
fn only_names_types_shapes_and_values_of_weights_count() {
    let a = r#""a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}"#;
    let b = r#""b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}"#;
    let swapped = r#"{"b":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},
        "__metadata__":{"x":"y"},"a":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}"#;
    let digest = of_weights(&file(&format!("{{{a},{b}}}"), &[1, 2, 3])).unwrap();
    assert_eq!(of_weights(&file(swapped, &[2, 3, 1])).unwrap(), digest);
    for (header, data) in [
        (format!("{{{a},{b}}}"), [1, 2, 4]),
        (format!("{{{a},{}}}", b.replace("[2]", "[2,1]")), [1, 2, 3]),
        (format!("{{{a},{}}}", b.replace("U8", "I8")), [1, 2, 3]),
        (format!("{{{a},{}}}", b.replace("\"b\"", "\"c\"")), [1, 2, 3]),
    ] {
        assert_ne!(of_weights(&file(&header, &data)).unwrap(), digest, "{header}");
    }
    for broken in [vec![], file("{", &[]), file(&format!("{{{a}}}"), &[])] {
        assert!(of_weights(&broken).is_err());
    }
}

#[test]
fn losses_are_told_apart_in_the_last_digit_and_must_be_there() {
    let line =
        |loss: &str| format!("{{\"step\":1,\"loss\":{loss},\"grad_norm\":1.0,\"seconds\":2}}");
    assert_ne!(of_losses(&line("1.25")).unwrap(), of_losses(&line("1.2500001")).unwrap());
    assert!(of_losses(&line("null")).is_err());
}

#[test]
fn a_run_that_differs_or_is_missing_is_named() {
    let runs = parse_listing("a 1 2\nb 3 4\n\nc 5 6\n");
    assert_eq!(parse_listing(&listing(&runs)), runs);
    assert_eq!(differences(&runs, &runs), [""; 0]);
    let others = parse_listing("a 1 0\nb 0 0\nd 7 8");
    assert_eq!(
        differences(&runs, &others),
        [
            "a: losses differ",
            "b: weights and losses differ",
            "c: nothing to compare with",
            "d: expected, but not run"
        ]
    );
}

#[test]
fn options_are_read() {
    let options = Options::parse(&["new", "--against", "old"]).unwrap();
    let paths = (options.hone, options.against);
    assert_eq!(paths, (Some(PathBuf::from("new")), Some(PathBuf::from("old"))));
    for wrong in [&["--against"][..], &["--record", "--against", "a"], &["a", "b"], &["-x"]] {
        assert!(Options::parse(wrong).is_err(), "{wrong:?}");
    }
}
