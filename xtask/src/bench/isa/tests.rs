use super::record::all_equal;
use super::*;

fn cell(set: &'static str, threads: usize, digit: &str) -> Cell {
    let digest = digit.repeat(64);
    Cell { set, threads, parts: [digest.clone(), "0".repeat(64), digest] }
}

/// As of a machine with plain Rust and AVX2.
fn rows() -> Vec<Vec<Cell>> {
    let row = |digit: &str| {
        let of = |set| THREADS.map(|threads| cell(set, threads, digit));
        ["scalar", "avx2"].into_iter().flat_map(of).collect()
    };
    ["a", "b", "c"].map(row).into()
}

#[test]
fn the_first_cell_that_differs_is_named() {
    let mut rows = rows();
    assert_eq!(all_equal(&rows), Ok(()));
    rows[1][3].parts[2] = "d".repeat(64);
    rows[1][2].parts[1] = "e".repeat(64);
    let error = all_equal(&rows).unwrap_err();
    let expected = "lora-int8, moments: eeeeeeee";
    assert!(error.starts_with(expected), "{error}");
    assert!(error.contains("under avx2 with threads: 1, and 0000"), "{error}");
}

#[test]
fn a_record_is_read_as_written_and_compared() {
    let kept = Record::of(&rows(), 3, "a day, a machine");
    assert_eq!(Record::from_json(&kept.to_json()), Some(kept.clone()));
    assert_eq!(kept.instruction_sets, ["scalar", "avx2"]);
    assert_eq!(kept.to_json()["runs"]["full-bf16"]["model"], "c".repeat(64));
    assert_eq!(kept.check_against(&kept), Ok(()));
    let mut others = rows();
    others[2].iter_mut().for_each(|cell| cell.parts[0] = "d".repeat(64));
    let error = Record::of(&others, 3, "here").check_against(&kept).unwrap_err();
    assert!(error.starts_with("full-bf16, model: dddd"), "{error}");
    assert!(error.contains("a day, a machine"), "{error}");
    let mut broken = kept.to_json();
    broken["runs"]["lora-int8"]["moments"] = Value::Null;
    assert_eq!(Record::from_json(&broken), None);
}

#[test]
fn what_is_not_here_is_said_in_every_row() {
    let table = page::table(&rows());
    let rows: Vec<&str> = table.lines().skip(2).collect();
    assert_eq!(rows.len(), 9);
    for row in rows {
        assert_eq!(row.matches("not here").count(), 6, "{row}");
    }
    assert!(table.contains("| full, bf16 products | model | `cccccccccccccccc` |"), "{table}");
}

#[test]
fn options_are_read() {
    let options = Options::parse(&["--hone", "new", "--record"]).unwrap();
    assert_eq!(options, Options { hone: Some(PathBuf::from("new")), record: true });
    for wrong in [&["--hone"][..], &["new"], &["-x"]] {
        assert!(Options::parse(wrong).is_err(), "{wrong:?}");
    }
}
