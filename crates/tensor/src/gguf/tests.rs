use super::testing::{Field, Meta, Writer};
use super::{GgufError, GgufFile, GgufPlan, GgufTensor, GgufWriter, Value};
use crate::{DType, Storage};
use std::path::PathBuf;
use tempfile::TempDir;

/// Two tensors and a key of each type.
fn whole() -> Writer {
    let mut writer = Writer::default();
    writer
        .set("general.architecture", "llama")
        .set("u16", Meta::U16(7))
        .set("u32", Meta::U32(1 << 31))
        .set("i32", Meta::I32(-3))
        .set("f32", Meta::F32(1e-5))
        .set("bool", Meta::Bool(true))
        .set("texts", Meta::Texts(vec!["a".into(), "▁b".into(), String::new()]))
        .set("i32s", Meta::I32s(vec![1, -1]))
        .set("f32s", Meta::F32s(vec![0.1, -1000.0]))
        .set("u8", Field::Raw(0, vec![255]))
        .set("i8", Field::Raw(1, vec![255]))
        .set("i16", Field::Raw(3, (-300i16).to_le_bytes().to_vec()))
        .set("u64", Field::Raw(10, u64::MAX.to_le_bytes().to_vec()))
        .set("i64", Field::Raw(11, i64::MIN.to_le_bytes().to_vec()))
        .set("f64", Field::Raw(12, 0.25f64.to_le_bytes().to_vec()))
        .floats("a", &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
        .tensor("b", 1, &[4], [0x3c00u16, 0xc000, 0, 0x3800].map(u16::to_le_bytes).concat());
    writer
}

/// A folder with these files.
fn folder(files: &[(&str, Vec<u8>)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

fn open(bytes: Vec<u8>) -> (TempDir, Result<GgufFile, GgufError>) {
    let folder = folder(&[("m.gguf", bytes)]);
    let file = GgufFile::open(&folder.path().join("m.gguf"));
    (folder, file)
}

/// The error, after the name of the file.
#[track_caller]
fn refused(bytes: Vec<u8>) -> String {
    let (folder, file) = open(bytes);
    let message = file.err().expect("this file must be refused").to_string();
    let path = format!("{}: ", folder.path().join("m.gguf").display());
    message.strip_prefix(&path).unwrap_or_else(|| panic!("{message}")).to_owned()
}

/// The reason for which it is called damaged.
#[track_caller]
fn damaged(bytes: Vec<u8>) -> String {
    let message = refused(bytes);
    let reason = message.strip_prefix("not a whole GGUF file (").unwrap_or_else(|| {
        panic!("another error: {message}");
    });
    reason.split_once("). It may have been cut short").unwrap().0.to_owned()
}

#[test]
fn metadata_and_tensors_are_read() {
    for (version, alignment) in [(2, 32), (3, 32), (3, 64), (3, 8)] {
        let mut writer = Writer { version, alignment, ..whole() };
        writer.set(ALIGNMENT, Meta::U32(alignment as u32));
        let (_folder, file) = open(writer.bytes());
        let file = file.unwrap();
        assert_eq!(file.get("general.architecture"), Some(Value::Text("llama")));
        for (key, expected) in [
            ("u8", 255),
            ("i8", -1),
            ("u16", 7),
            ("i16", -300),
            ("u32", 1 << 31),
            ("i32", -3),
            ("u64", u64::MAX.into()),
            ("i64", i64::MIN.into()),
        ] {
            assert_eq!(file.get(key), Some(Value::Integer(expected)), "{key}");
        }
        assert_eq!(file.get("f32"), Some(Value::Float(1e-5)));
        assert_eq!(file.get("f64"), Some(Value::Float(0.25)));
        assert_eq!(file.get("bool"), Some(Value::Bool(true)));
        assert_eq!(file.get("none"), None);
        let elements = |key| match file.get(key) {
            Some(Value::Array(array)) => array.iter().collect::<Result<Vec<_>, _>>().unwrap(),
            other => panic!("{other:?}"),
        };
        assert_eq!(elements("texts"), [Value::Text("a"), Value::Text("▁b"), Value::Text("")]);
        assert_eq!(elements("i32s"), [Value::Integer(1), Value::Integer(-1)]);
        assert_eq!(elements("f32s"), [Value::Float(0.1), Value::Float(-1000.0)]);
        assert_eq!(file.names().collect::<Vec<_>>(), ["a", "b"]);
        let a = file.tensor("a").unwrap();
        assert_eq!((a.shape(), a.f32()), (&[2, 3][..], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0][..]));
        assert_eq!(file.tensor("b").unwrap().to_vec_f32(), [1.0, -2.0, 0.0, 0.5]);
        assert!(file.tensor("c").is_none());
    }
}

/// Wherever a file is cut, or one of its bytes changed, it is read or refused.
#[test]
fn damaged_files_are_refused() {
    let bytes = whole().bytes();
    let folder = folder(&[]);
    let path = folder.path().join("m.gguf");
    let open = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        GgufFile::open(&path)
    };
    for len in (0..bytes.len() - 32).step_by(3) {
        assert!(open(&bytes[..len]).is_err(), "{len}");
    }
    for at in 0..bytes.len() - 64 {
        for value in [0, 0xff] {
            let mut bytes = bytes.clone();
            bytes[at] = value;
            let Ok(file) = open(&bytes) else { continue };
            for name in file.names() {
                let _ = file.tensor(name);
            }
        }
    }
}

type Change<'a> = &'a dyn Fn(&mut Writer);

const ALIGNMENT: &str = "general.alignment";

#[test]
fn errors_name_what_is_wrong() {
    assert_eq!(damaged(b"PK\x03\x04 and so on".to_vec()), "it does not begin with GGUF");
    for (version, says) in [
        (1, "GGUF version 1, which has not been written since 2023; fetch a newer file"),
        (
            3u32.swap_bytes(),
            "a big-endian GGUF file; convert it with gguf-convert-endian of the gguf package",
        ),
        (4, "a GGUF version other than 2 and 3, which are read; a newer Hone may read it"),
    ] {
        assert_eq!(refused(Writer { version, ..whole() }.bytes()), says);
    }
    let with = |change: Change<'_>| {
        let mut writer = whole();
        change(&mut writer);
        writer.bytes()
    };
    let huge = u64::MAX.to_le_bytes();
    let array = |kind: u32| [&kind.to_le_bytes()[..], &huge].concat();
    let nested =
        |depth| [9u32.to_le_bytes().to_vec(), 1u64.to_le_bytes().to_vec()].concat().repeat(depth);
    let cases: [(Change<'_>, &str); 17] = [
        (&|w| w.keys.push(("u16".into(), Meta::U16(8).into())), "key `u16` is there twice"),
        (&|w| w.keys.push(("x".into(), Field::Raw(13, vec![]))), "key `x`: a value has type 13"),
        (&|w| w.keys.push(("x".into(), Field::Raw(7, vec![2]))), "key `x`: a boolean is 2"),
        (&|w| w.keys.push(("x".into(), Field::Raw(8, huge.to_vec()))), "bytes are to follow byte"),
        (&|w| w.keys.push(("x".into(), Field::Raw(9, array(5)))), "bytes are to follow byte"),
        (&|w| w.keys.push(("x".into(), Field::Raw(9, array(8)))), "bytes are to follow byte"),
        (&|w| w.keys.push(("x".into(), Field::Raw(9, nested(5)))), "nested more than 4 deep"),
        (
            &|w| w.keys.push((ALIGNMENT.into(), Meta::U32(24).into())),
            "is not a power of two from 8",
        ),
        (&|w| w.tensors[0].shape = vec![], "tensor `a` has 0 dimensions, expected 1 to 4"),
        (&|w| w.tensors[0].shape = vec![3, 0], "tensor `a` has a dimension of length 0"),
        (&|w| w.tensors[0].shape = vec![u64::MAX / 8; 3], "is larger than any memory"),
        (&|w| w.tensors[1].offset = Some(12), "tensor `b` begins at an offset that is not a multi"),
        (&|w| w.tensors[1].offset = Some(1 << 40), "tensor `b` has 8 bytes from 1099511627776 on"),
        (&|w| w.tensors[1].offset = Some(0), "tensors `b` and `a` overlap"),
        (&|w| gap(w, 0), "tensor `a` begins 32 bytes after where the data begin, and the one"),
        (&|w| gap(w, 1), "tensor `b` begins 64 bytes after where the data begin, and the one"),
        (
            // Nothing lies where it should not, but not in the header's order.
            &|w| {
                w.tensors[1].bytes.resize(24, 0);
                w.tensors[0].offset = Some(32);
                w.tensors[1].offset = Some(0);
            },
            "bytes after where the data begin, and the one before it ends at 0: there is a gap",
        ),
    ];
    for (change, says) in cases {
        let reason = damaged(with(change));
        assert!(reason.contains(says), "{reason:?} is not {says:?}");
    }
    let twice = with(&|w| w.tensors[1].name = "a".into());
    assert_eq!(damaged(twice), "tensor `a` is there twice");
    let ragged = "tensor `a`: rows of 3 weights are not whole blocks of 256, as q4_k has them. \
                  Quantise it in a type whose blocks divide its rows";
    assert_eq!(refused(with(&|w| w.tensors[0].kind = 12)), ragged);
    for (kind, says) in
        [(16, "type 16 (IQ2_XXS) is not read"), (43, "type 43 (unknown) is not read")]
    {
        let message = refused(with(&|w| w.tensors[0].kind = kind));
        assert!(message.starts_with(&format!("tensor `a`: {says}; those that are: F32, ")));
        assert!(message.ends_with(". Fetch the model in one of these, or quantise it again"));
    }
}

/// Leaves 32 bytes free before a tensor.
fn gap(writer: &mut Writer, before: usize) {
    let mut at = 0;
    for (i, tensor) in writer.tensors.iter_mut().enumerate() {
        at += if i == before { 32 } else { 0 };
        tensor.offset = Some(at);
        at += (tensor.bytes.len() as u64).next_multiple_of(32);
    }
    writer.tensors.last_mut().unwrap().bytes.resize(64, 0);
}

/// Blocks of every type are held as they are, and rows of them can change places.
#[test]
fn blocks_are_held_as_they_are() {
    for (id, storage) in (0..64).filter_map(|id| Some((id, Storage::from_ggml(id).ok()?))) {
        let shape = [3, 512];
        let bytes: Vec<u8> = (0..storage.num_bytes(&shape)).map(|i| i as u8 & 0x3f).collect();
        let mut writer = Writer::default();
        writer.tensor("w", id, &shape, bytes.clone());
        let (_folder, file) = open(writer.bytes());
        let tensor = file.unwrap().tensor("w").unwrap();
        assert_eq!((tensor.storage(), tensor.bytes()), (storage, &bytes[..]));
        let turned = GgufFile::reordered(&tensor, 3, |row| 2 - row).unwrap();
        let rows: Vec<Vec<f32>> =
            tensor.to_vec_f32().chunks(512).rev().map(<[f32]>::to_vec).collect();
        let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&turned.to_vec_f32()), bits(&rows.concat()), "{}", storage.name());
    }
}

/// Two halves of a row of one block share its scale: there are no such parts. The last one would
/// reach beyond the file.
#[test]
fn parts_are_whole_blocks() {
    for (len, is_whole) in [(32, false), (64, true)] {
        let bytes: Vec<u8> = (0..3 * len / 32 * 34).map(|i| i as u8 & 0x3f).collect();
        let mut writer = Writer::default();
        writer.tensor("w", 8, &[3, len], bytes);
        let (_folder, file) = open(writer.bytes());
        let file = file.unwrap();
        let values = file.tensor("w").unwrap().to_vec_f32();
        for (index, expected) in values.chunks(len / 2).enumerate() {
            let half = file.part("w", index, 2).unwrap();
            let expected = is_whole.then(|| expected.to_vec());
            assert_eq!(half.map(|half| half.to_vec_f32()), expected, "{len} {index}");
        }
        assert_eq!(file.part("w", 2, 1).unwrap().unwrap().to_vec_f32(), values[2 * len..]);
        assert!(file.part("w", 6, 2).unwrap().is_none() && file.part("w", 3, 1).unwrap().is_none());
    }
}

/// The second tensor in a part of its own.
fn split() -> [Writer; 2] {
    let mut parts = [whole(), Writer::default()];
    parts[1].tensors = vec![parts[0].tensors.remove(1)];
    for (i, part) in parts.iter_mut().enumerate() {
        part.set("split.no", Meta::U16(i as u16))
            .set("split.count", Meta::U16(2))
            .set("split.tensors.count", Meta::I32(2));
    }
    parts
}

const NAMES: [&str; 2] = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"];

#[test]
fn parts_are_one_file() {
    let [first, second] = split().map(|part| part.bytes());
    let folder = folder(&[(NAMES[0], first), (NAMES[1], second)]);
    for name in NAMES {
        let file = GgufFile::open(&folder.path().join(name)).unwrap();
        assert_eq!(file.get("u16"), Some(Value::Integer(7)));
        assert_eq!(file.names().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(file.tensor("b").unwrap().to_vec_f32(), [1.0, -2.0, 0.0, 0.5]);
        assert!(file.path().ends_with(NAMES[0]));
        assert_eq!(file.paths().count(), 2);
    }
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    let says = |files: &[(&str, Vec<u8>)], opened: &str, expected: &str| {
        let folder = folder(files);
        let path: PathBuf = folder.path().join(opened);
        let message = GgufFile::open(&path).err().expect("refused").to_string();
        assert!(message.contains(expected), "{message:?} is not {expected:?}");
    };
    let [first, second] = split().map(|part| part.bytes());
    says(&[(NAMES[0], first.clone())], NAMES[0], "m-00002-of-00002.gguf: one of 2 parts, and this");
    says(&[("m.gguf", second.clone())], "m.gguf", "part 2 of 2, and its name says 1 of 1. Give");
    says(
        &[(NAMES[0], second.clone()), (NAMES[1], first.clone())],
        NAMES[0],
        "this is part 2 of 2, and its name says 1 of 2",
    );
    says(&[(NAMES[0], whole().bytes()), (NAMES[1], second)], NAMES[1], "this is part 1 of 1");
    let mut more = split()[1].clone();
    more.set("split.tensors.count", Meta::I32(3));
    says(&[(NAMES[0], first.clone()), (NAMES[1], more.bytes())], NAMES[0], "hold 3 tensors and");
    let mut twice = split()[1].clone();
    twice.tensors[0].name = "a".to_owned();
    says(&[(NAMES[0], first), (NAMES[1], twice.bytes())], NAMES[0], "tensor `a` is also in ");
}

/// What is written in any order, and in pieces, is read as it was meant.
#[test]
fn files_are_written_as_planned() {
    let q8_0 = Storage::from_ggml(8).unwrap();
    let tensor = |name: &str, shape: &[usize], storage: Storage| GgufTensor {
        name: name.to_owned(),
        shape: shape.to_owned(),
        storage,
    };
    let tensors = vec![
        tensor("a", &[3], DType::F32.into()),
        tensor("b", &[2, 64], q8_0),
        tensor("c", &[5], DType::Bf16.into()),
    ];
    let metadata: Vec<(String, Meta)> = [
        ("general.architecture", Meta::from("llama")),
        ("flags", Meta::Bools(vec![true, false])),
        ("texts", Meta::Texts(vec!["a".into(), "▁b".into()])),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into();
    let plan = GgufPlan::new(&metadata, tensors).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let mut writer = GgufWriter::create(&path, plan.clone()).unwrap();
    let bytes: Vec<Vec<u8>> =
        plan.lens().map(|len| (0..len).map(|i| i as u8 & 0x3f).collect()).collect();
    for index in [2, 0, 1] {
        let (first, second) = bytes[index].split_at(bytes[index].len() / 2);
        writer.write(index, first.len() as u64, second).unwrap();
        writer.write(index, 0, first).unwrap();
    }
    writer.sync().unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), plan.num_bytes());

    let file = GgufFile::open(&path).unwrap();
    let Some(Value::Array(flags)) = file.get("flags") else { panic!("an array") };
    assert!(flags.iter().eq([true, false].map(|flag| Ok(Value::Bool(flag)))));
    for (tensor, bytes) in plan.tensors().iter().zip(&bytes) {
        let found = file.tensor(&tensor.name).unwrap();
        assert_eq!((found.shape(), found.storage()), (&tensor.shape[..], tensor.storage));
        assert_eq!(found.bytes(), bytes);
    }
}

#[test]
fn what_has_no_form_in_a_file_is_refused() {
    let nf4 = Storage::from_name("nf4").unwrap();
    let q8_0 = Storage::from_ggml(8).unwrap();
    let refused = |metadata: &[&str], tensors: &[(&str, &[usize], Storage)]| {
        let metadata: Vec<(String, Meta)> =
            metadata.iter().map(|key| ((*key).to_owned(), Meta::U32(1))).collect();
        let tensor = |(name, shape, storage): &(&str, &[usize], Storage)| GgufTensor {
            name: (*name).to_owned(),
            shape: (*shape).to_owned(),
            storage: *storage,
        };
        let tensors = tensors.iter().map(tensor).collect();
        GgufPlan::new(&metadata, tensors).unwrap_err().to_string()
    };
    let f32 = Storage::from(DType::F32);
    let name = "n".repeat(64);
    assert_eq!(refused(&["a", "b", "a"], &[]), "the key `a` is there twice");
    assert_eq!(refused(&[], &[("w", &[1], f32), ("w", &[2], f32)]), "tensor `w` is there twice");
    assert_eq!(
        refused(&[], &[(&name, &[1], f32)]),
        format!("tensor `{name}` has a name of more than 63 bytes")
    );
    assert_eq!(
        refused(&[], &[("w", &[2, 64], nf4)]),
        "tensor `w` is in nf4, for which GGUF has no type"
    );
    assert_eq!(
        refused(&[], &[("w", &[2, 40], q8_0)]),
        "tensor `w`: rows of 40 weights are not whole blocks of 32, as q8_0 has them"
    );
    for shape in [&[][..], &[2, 0], &[1; 5]] {
        let message = refused(&[], &[("w", shape, f32)]);
        assert!(message.ends_with("expected 1 to 4 dimensions above 0"), "{message}");
    }
}
