//! Files of tensors: what is written comes back, and nothing hostile gets further than an error.

use super::check_op::{normals, rounded, tensor_of};
use crate::safetensors::{FileError, Lazy, SafeTensorsFile, load_as, read_header, write};
use crate::{Category, DType, Device, DeviceError, Mapped, Philox, Place, Storage, Tensor};
use hone_kernels::format::FORMATS;
use hone_kernels::testing;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;

/// A folder that goes with the test, and a file in it.
struct Scratch {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl Scratch {
    fn new(name: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join(name);
        Self { _folder: folder, path }
    }

    fn holding(bytes: &[u8]) -> Self {
        let scratch = Self::new("model.safetensors");
        scratch.put(bytes);
        scratch
    }

    fn put(&self, bytes: &[u8]) {
        std::fs::write(&self.path, bytes).expect("a temporary file");
    }

    fn open(&self) -> Result<SafeTensorsFile, FileError> {
        SafeTensorsFile::open(&self.path)
    }

    /// The error of opening the file, as the user reads it.
    fn error(&self) -> (FileError, String) {
        let error = self.open().err().expect("this file must be refused");
        let message = error.to_string();
        assert!(message.starts_with(&format!("{}: ", self.path.display())), "{message}");
        (error, message)
    }
}

fn file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

fn assert_damaged(bytes: &[u8], reason: &str) {
    let (error, message) = Scratch::holding(bytes).error();
    assert!(matches!(error, FileError::Damaged { .. }), "{message}");
    assert!(message.contains(reason), "`{message}` does not say `{reason}`");
    assert!(message.contains("fetch it again"), "{message}");
}

#[test]
fn what_is_written_comes_back() {
    let scratch = Scratch::new("model.safetensors");
    let values = normals(1, 15);
    let tensors: Vec<(String, Tensor)> = [DType::F32, DType::Bf16, DType::F16]
        .into_iter()
        .flat_map(|dtype| {
            let tensor = |shape: &[usize]| {
                let len = shape.iter().product();
                tensor_of(&values[..len], dtype, shape)
            };
            [("odd", vec![3, 5]), ("one", vec![]), ("none", vec![0, 4]), ("seven", vec![7])]
                .map(|(name, shape)| (format!("{name}.{}", dtype.name()), tensor(&shape)))
        })
        .collect();
    write(&scratch.path, tensors.iter().map(|(name, tensor)| (name.clone(), tensor.into())))
        .expect("written");
    let file = scratch.open().expect("whole");
    assert_eq!(file.path(), scratch.path);
    let mut names: Vec<&String> = tensors.iter().map(|(name, _)| name).collect();
    names.sort();
    assert!(file.names().iter().eq(names));
    for (name, tensor) in &tensors {
        let read = file.tensor(name).unwrap().expect("present");
        assert_eq!((read.dtype(), read.shape()), (tensor.dtype(), tensor.shape()), "{name}");
        assert_eq!(read.bytes(), tensor.bytes(), "{name}");
    }
    assert!(file.tensor("absent").unwrap().is_none());
}

/// If memory runs out while a file is written, that is an error, nothing more is computed, and the
/// folder is as it was before.
#[test]
fn memory_that_runs_out_leaves_no_file() {
    let scratch = Scratch::holding(b"an earlier file");
    let attempts = Cell::new(0);
    let made = || {
        let make = || {
            attempts.set(attempts.get() + 1);
            Err(DeviceError::out_of_host_memory(7))
        };
        Lazy::Deferred { dtype: DType::F32, shape: vec![2], make: Box::new(make) }
    };
    let ready = Lazy::Ready(Tensor::from_f32(&[1.0], &[1]));
    let tensors = [("first", ready), ("second", made()), ("third", made())];
    let written =
        write(&scratch.path, tensors.into_iter().map(|(name, lazy)| (name.to_owned(), lazy)));
    assert!(matches!(written, Err(FileError::Device(error)) if error.is_out_of_memory()));
    assert_eq!(attempts.get(), 1);
    assert_eq!(std::fs::read(&scratch.path).unwrap(), b"an earlier file");
    assert_eq!(std::fs::read_dir(scratch.path.parent().unwrap()).unwrap().count(), 1);
}

#[test]
fn tensors_outlive_their_file_and_are_read_only() {
    let header = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    let header = format!("{header:<56}");
    let scratch = Scratch::holding(&file(&header, &[1.5f32, -2.0].map(f32::to_le_bytes).concat()));
    let mut tensor = scratch.open().expect("whole").tensor("a").unwrap().expect("present");
    drop(scratch);
    assert_eq!(tensor.f32(), [1.5, -2.0]);
    assert!(!tensor.is_unique());
    assert!(catch_unwind(AssertUnwindSafe(|| tensor.f32_mut()[0] = 0.0)).is_err());
}

#[test]
fn misaligned_data_is_copied() {
    let numbers = [1.5f32, -2.0].map(f32::to_le_bytes).concat();
    for padding in 0..8 {
        let header = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        let header = format!("{header}{}", " ".repeat(padding));
        let scratch = Scratch::holding(&file(&header, &numbers));
        let tensor = scratch.open().expect("whole").tensor("a").unwrap().expect("present");
        assert_eq!(tensor.f32(), [1.5, -2.0]);
        let map = Arc::new(Mapped::open(&scratch.path).expect("mapped"));
        let mapped = Tensor::from_file(&map, 8 + header.len(), DType::F32, &[2]);
        assert_eq!(mapped.is_some(), header.len() % 4 == 0);
        assert!(Tensor::from_file(&map, map.bytes().len() - 4, DType::F32, &[2]).is_none());
        assert!(Tensor::from_file(&map, usize::MAX, DType::F32, &[2]).is_none());
    }
}

#[test]
fn an_f64_is_rounded_if_f32_has_its_range() {
    let header = r#"{"a":{"dtype":"F64","shape":[2],"data_offsets":[0,16]}}"#;
    for (values, expected) in [
        ([0.1, -3e38], Some([0.1, -3e38])),
        ([f64::INFINITY, 1e-60], Some([f32::INFINITY, 0.0])),
        ([1.0, -1e39], None),
    ] {
        let scratch = Scratch::holding(&file(header, &values.map(f64::to_le_bytes).concat()));
        let read = scratch.open().expect("whole").tensor("a");
        match expected {
            Some(expected) => assert_eq!(read.unwrap().expect("present").f32(), expected),
            None => {
                let message = read.expect_err("f32 ends below").to_string();
                let start = format!("{}: tensor `a` holds -1e39", scratch.path.display());
                assert!(message.starts_with(&start), "{message}");
            }
        }
    }
}

#[test]
fn a_header_of_any_length_is_read() {
    // The first bytes of 640, 896, … are those of a pickle.
    for length in (56..1600).step_by(8) {
        let header = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
        let header = format!("{header:<length$}");
        let scratch = Scratch::holding(&file(&header, &[0; 4]));
        assert!(scratch.open().is_ok(), "a header of {length} bytes");
    }
    assert!(Scratch::holding(&file("{}", &[])).open().expect("valid").names().is_empty());
}

#[test]
fn damaged_files_are_refused() {
    let one = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    let whole = file(one, &[0; 8]);
    assert_damaged(&[], "0 bytes");
    assert_damaged(&whole[..5], "5 bytes");
    assert_damaged(&whole[..20], "12 bytes follow");
    assert_damaged(
        &whole[..whole.len() - 1],
        "`a` ends at byte 8 of the data, which has only 7 bytes",
    );
    assert_damaged(&file(one, &[0; 9]), "not fully covered");
    assert_damaged(&[u64::MAX.to_le_bytes().as_slice(), &[b'{'; 50]].concat(), "header");
    assert_damaged(&[(1u64 << 40).to_le_bytes().as_slice(), &[b'{'; 50]].concat(), "header");
    assert_damaged(&file("[]", &[]), "header");
    assert_damaged(&file("not json", &[]), "header");
    assert_damaged(&file(&"[".repeat(100_000), &[]), "header");
    assert_damaged(&[4u64.to_le_bytes().as_slice(), b"\xff\xfe\x00\x01"].concat(), "header");
    assert_damaged(b"ordinary text, by mistake under this name", "header");
}

#[test]
fn wrong_offsets_and_lengths_are_refused() {
    let two = |a: &str, b: &str| {
        let entry = |at: &str| format!(r#"{{"dtype":"F32","shape":[2],"data_offsets":{at}}}"#);
        file(&format!(r#"{{"a":{},"b":{}}}"#, entry(a), entry(b)), &[0; 16])
    };
    assert!(Scratch::holding(&two("[0,8]", "[8,16]")).open().is_ok());
    assert_damaged(&two("[0,8]", "[4,12]"), "`b`");
    assert_damaged(&two("[0,8]", "[0,8]"), "offset");
    assert_damaged(&two("[0,4]", "[8,16]"), "");
    assert_damaged(&two("[4,12]", "[12,20]"), "");
    assert_damaged(&two("[0,8]", "[8,20]"), "`b` ends at byte 20");
    assert_damaged(&two("[0,8]", "[16,8]"), "");
    assert_damaged(&two("[0,8]", "[-8,16]"), "header");
    let shaped = |shape: &str| {
        let header = format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":[0,8]}}}}"#);
        file(&header, &[0; 8])
    };
    assert!(Scratch::holding(&shaped("[2,1]")).open().is_ok());
    assert_damaged(&shaped("[3]"), "shape");
    assert_damaged(&shaped("[4294967296,4294967296,0]"), "overflow");
    assert_damaged(&shaped("[4611686018427387904]"), "overflow");
}

/// Offsets whose sum with the header's length exceeds 64 bits.
#[test]
fn offsets_cannot_overflow() {
    let length = (1u64 << 61) - 8;
    let entry = |i: u64| {
        let (start, end) = (i * length, (i + 1) * length);
        let elements = length / 4;
        format!(r#""t{i}":{{"dtype":"F32","shape":[{elements}],"data_offsets":[{start},{end}]}}"#)
    };
    let entries: Vec<String> = (0..8).map(entry).collect();
    assert_damaged(&file(&format!("{{{}}}", entries.join(",")), &[]), "`t0` ends at byte");
}

#[test]
fn a_name_that_occurs_twice_is_refused() {
    let entry = r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
    // The second spelling is the first, escaped.
    for second in ["a", r"\u0061"] {
        let header = format!(r#"{{"a":{entry},"{second}":{entry}}}"#);
        assert_damaged(&file(&header, &[0; 4]), "the name `a` occurs twice");
    }
}

#[test]
fn types_without_meaning_for_weights_are_refused() {
    for (dtype, size) in [("I64", 8), ("I8", 1), ("F8_E4M3", 1), ("BOOL", 1)] {
        let header =
            format!(r#"{{"x":{{"dtype":"{dtype}","shape":[1],"data_offsets":[0,{size}]}}}}"#);
        let scratch = Scratch::holding(&file(&header, &vec![0; size]));
        let error = scratch.open().and_then(|file| file.tensor("x")).expect_err("no floats");
        let message = error.to_string();
        assert!(matches!(error, FileError::ElementType { .. }), "{message}");
        assert!(message.contains("`x` holds") && message.contains("f32, f16 and bf16"));
    }
    let header = r#"{"x":{"dtype":"Q9","shape":[1],"data_offsets":[0,1]}}"#;
    assert_damaged(&file(header, &[0]), "Q9");
}

#[test]
fn pickles_are_refused_under_any_name() {
    let zip = b"PK\x03\x04\x00\x00\x08\x08archive/data.pkl".to_vec();
    let bare = |protocol| vec![0x80, protocol, b'}', b'q', 0, b'.'];
    // torch.save before 1.6: a magic number as a pickled long.
    let old = [&[0x80, 2, 0x8a, 10], b"l\xfc\x9cF\xf9 j\xa8P\x19.".as_slice()].concat();
    for bytes in [zip, bare(2), bare(3), bare(4), bare(5), old] {
        for name in ["pytorch_model.bin", "model.safetensors", "model.pt", "x.ckpt"] {
            let scratch = Scratch::new(name);
            scratch.put(&bytes);
            let (error, message) = scratch.error();
            assert!(matches!(error, FileError::Pickled { .. }), "{message}");
            assert!(message.contains("safe_serialization=True"), "{message}");
        }
    }
}

#[test]
fn what_cannot_be_opened_or_written_says_why() {
    let scratch = Scratch::new("absent.safetensors");
    let (error, message) = scratch.error();
    assert!(matches!(error, FileError::Io { .. }) && message.contains("No such file"), "{message}");
    let nowhere = scratch.path.join("below");
    let error = write(&nowhere, []).expect_err("there is no such folder");
    assert!(matches!(error, FileError::Io { .. }), "{error}");
    assert!(error.to_string().contains("below"), "{error}");
}

/// Random damage to the header, or a cut: an error, or tensors that lie inside the file.
#[test]
fn random_damage_never_panics() {
    let header = concat!(
        r#"{"__metadata__":{"format":"pt"},"#,
        r#""a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},"#,
        r#""b":{"dtype":"BF16","shape":[3],"data_offsets":[8,14]},"#,
        r#""c":{"dtype":"F16","shape":[0,9],"data_offsets":[14,14]}}"#
    );
    let whole = file(header, &[0; 14]);
    let scratch = Scratch::holding(&whole);
    assert_eq!(scratch.open().expect("valid").names(), ["a", "b", "c"]);
    let mut opened = 0;
    for round in 0..20_000 {
        let bytes = damaged(&whole, header.len(), round);
        // Only what gets past the header is worth a file.
        if read_header(&bytes).is_ok() {
            opened += 1;
            scratch.put(&bytes);
            let Ok(file) = scratch.open() else { continue };
            for name in file.names() {
                let tensor = file.tensor(&name).unwrap().expect("a checked header");
                assert_eq!(tensor.view().len(), tensor.len());
                assert!(tensor.num_bytes() <= 14);
            }
        }
    }
    assert!((200..4000).contains(&opened), "{opened} opened: too much or too little damage");
}

/// One to three bytes of the first `8 + header` replaced, most by what may stand in a header.
fn damaged(whole: &[u8], header: usize, seed: u64) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    let random = Philox::new(seed, 0);
    let likely = br#"0123456789[]{}",:-FB\ "#;
    for change in 0..1 + seed % 3 {
        let [at, byte, any, _] = random.words(change);
        let at = at as usize % (8 + header);
        bytes[at] = match any % 3 {
            0 => byte as u8,
            _ => likely[byte as usize % likely.len()],
        };
    }
    if seed.is_multiple_of(7) {
        bytes.truncate(random.words(9)[0] as usize % bytes.len());
    }
    bytes
}

/// A header is not parsed, however it looks, if it is longer than any real one.
#[test]
fn a_header_of_gigabytes_is_refused_unread() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(8 + (101 << 20)).unwrap();
    std::io::Write::write_all(&mut file.as_file(), &(101u64 << 20).to_le_bytes()).unwrap();
    let error = SafeTensorsFile::open(file.path()).err().unwrap().to_string();
    assert!(error.contains("are allowed"), "{error}");
}

#[test]
fn weights_are_held_in_another_type() {
    let device = Device::cpu(2);
    let values = normals(6, 20_001);
    for from in [DType::F32, DType::Bf16, DType::F16] {
        for to in [DType::F32, DType::Bf16, DType::F16] {
            let source = tensor_of(&values, from, &[3, 6667]);
            let held = load_as(&device, Category::Weights, &source, to).unwrap();
            assert_eq!((held.dtype(), held.shape()), (to, source.shape()));
            let expected = rounded(&rounded(&values, from), to);
            assert_eq!(held.view().to_vec_f32(), expected, "{} to {}", from.name(), to.name());
        }
    }
    // Packed in a file.
    for format in FORMATS.into_iter().filter(|format| testing::is_of_files(format)) {
        let bytes = testing::weights_of_file(format, [3, 256], 7);
        let source = Tensor::from_bytes(&bytes, Storage::Packed(format), &[3, 256]);
        let values = source.view().to_vec_f32();
        for to in Storage::NAMES {
            let storage = Storage::from_name(to).unwrap();
            let held = load_as(&device, Category::Weights, &source, storage).unwrap();
            let expected = tensor_of(&values, storage, &[3, 256]);
            assert_eq!(held.bytes(), expected.bytes(), "{} to {to}", format.name);
        }
    }
    let dry = Device::dry();
    let held =
        load_as(&dry, Category::Weights, &tensor_of(&values, DType::F32, &[20_001]), DType::Bf16)
            .unwrap();
    assert_eq!((held.num_bytes(), dry.persistent_bytes(Category::Weights)), (40_002, 40_002));
}

/// Parts of `[2, 3, 80]`, of whose columns even ones are one matrix and odd ones another.
#[test]
fn parts_come_out_and_go_back() {
    for dtype in [DType::F32, DType::Bf16, DType::F16] {
        let values = rounded(&normals(4, 2 * 3 * 80), dtype);
        let whole = tensor_of(&values, dtype, &[2, 3, 80]);
        let scratch = Scratch::new("model.safetensors");
        write(&scratch.path, [("x".to_owned(), (&whole).into())]).unwrap();
        let stored = scratch.open().unwrap().tensor("x").unwrap().unwrap();
        let mut parts = Vec::new();
        for (expert, parity) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let place = Place { first: expert * 240 + parity, row_step: 2, col_step: 80 };
            let part = stored.part_of_file(&Device::cpu(1), place, &[40, 3]).unwrap();
            let expected: Vec<f32> = (0..40)
                .flat_map(|row| (0..3).map(move |col| (expert * 3 + col) * 80 + 2 * row + parity))
                .map(|at| values[at])
                .collect();
            assert_eq!(part.to_vec_f32(), expected, "{dtype:?}");
            let dry = stored.part_of_file(&Device::dry(), place, &[40, 3]).unwrap();
            assert_eq!((dry.dtype(), dry.shape()), (dtype, &[40, 3][..]));
            parts.push((place, Ok(part)));
        }
        // What lies in one piece is not copied.
        let place = Place { first: 240, row_step: 80, col_step: 1 };
        let second = stored.part_of_file(&Device::cpu(1), place, &[3, 80]).unwrap();
        assert_eq!(second.to_vec_f32(), values[240..]);
        assert!(stored.bytes().as_ptr_range().contains(&second.bytes().as_ptr()));
        let again = Tensor::assembled(dtype, &[2, 3, 80], parts.into_iter()).unwrap();
        assert_eq!(again.to_vec_f32(), values);
    }
}
