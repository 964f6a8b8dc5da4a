use super::mutation::{Random, mutate};
use super::{Options, targets, watch, worker};
use hone_tensor::allocation::peak_of;

/// Unchanged, every seed is read without an error: mutations then reach what is behind.
#[test]
fn the_corpus_is_accepted() {
    for target in targets::named("all") {
        for (i, seed) in target.seeds().unwrap().iter().enumerate() {
            let dir = watch::folder(&format!("test-seeds-{}", target.name));
            let said = worker::read_once(target, &dir, seed).unwrap();
            assert_eq!(said, "accepted", "seed {i} of {}", target.name);
        }
    }
}

/// A few inputs of every target; `cargo xtask test --full` reads thousands.
#[test]
fn mutated_files_are_read_or_refused() {
    for target in targets::named("all") {
        let seeds = target.seeds().unwrap();
        let dir = watch::folder(&format!("test-mutated-{}", target.name));
        for index in 0..20 {
            let input = mutate(&seeds, &mut Random::new(1, index));
            worker::read_once(target, &dir, &input).unwrap();
        }
    }
}

#[test]
fn memory_without_bound_is_found() {
    const BYTES: usize = 80 << 20;
    for grows in [false, true] {
        let (length, peak) = peak_of(|| match grows {
            false => vec![0u8; BYTES].len(),
            true => (0..BYTES).map(|i| i as u8).filter(|_| true).collect::<Vec<_>>().len(),
        });
        // Other tests may free some memory meanwhile.
        assert!(length == BYTES && peak >= BYTES / 16 * 15, "{peak}");
        assert!(std::panic::catch_unwind(|| worker::check_peak(peak, 1000)).is_err());
    }
    worker::check_peak(BYTES, BYTES);
}

#[test]
fn mutations_repeat_and_differ() {
    let seeds = [br#"{"a": 12, "b": [1, 2]}"#.to_vec(), b"[]".to_vec()];
    let inputs = |seed| (0..50).map(|i| mutate(&seeds, &mut Random::new(seed, i))).collect();
    let (first, again, other): (Vec<_>, Vec<_>, Vec<_>) = (inputs(1), inputs(1), inputs(2));
    assert_eq!(first, again);
    assert_ne!(first, other);
    let distinct: std::collections::BTreeSet<_> = first.iter().collect();
    assert!(distinct.len() > 30, "{}", distinct.len());
}

#[test]
fn options_are_read() {
    let parse = |line: &str| Options::parse(line.split_whitespace().map(str::to_owned));
    let options = parse("all --seconds 60 --seed 7").unwrap();
    assert_eq!((options.seconds, options.seed), (60, Some(7)));
    assert_eq!(targets::named(&options.target).len(), targets::names().len());
    for wrong in ["", "--seconds 3", "all --seconds", "all --seconds x", "all --fast 1"] {
        assert_eq!(parse(wrong), None, "{wrong}");
    }
    assert!(targets::named("nothing").is_empty());
}
