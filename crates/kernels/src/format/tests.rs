use super::*;
use crate::cuda::Gpu;
use crate::element::bf16;
use crate::memory::{self, Region};
use crate::processor::Processor;
use crate::random::Philox;
use crate::view::{View, ViewMut};

/// A matrix in a weight format.
pub(crate) struct PackedMatrix {
    region: Region,
    format: &'static WeightFormat,
    len: usize,
    cols: usize,
}

impl PackedMatrix {
    /// Packed floats.
    ///
    /// # Panics
    /// If the format is only read.
    pub(crate) fn new(format: &'static WeightFormat, x: &[f32], cols: usize) -> Self {
        let pack = format.pack.expect("a format that packs");
        Self::filled(format, [x.len() / cols, cols], |bytes| {
            pack(&Cpu::new(1), Floats::F32(x), cols, bytes);
        })
    }

    /// The bytes of a file.
    pub(crate) fn of_bytes(format: &'static WeightFormat, bytes: &[u8], shape: [usize; 2]) -> Self {
        Self::filled(format, shape, |to| to.copy_from_slice(bytes))
    }

    /// Weights of about 1, packed or, if files have the format, made up; of at least `cols`
    /// columns, in whole blocks.
    pub(crate) fn random(
        format: &'static WeightFormat,
        [rows, cols]: [usize; 2],
        stream: u64,
    ) -> Self {
        let cols = cols.next_multiple_of(format.block);
        match crate::testing::is_of_files(format) {
            false => Self::new(format, &random(rows * cols, stream), cols),
            true => {
                let bytes = crate::testing::weights_of_file(format, [rows, cols], stream);
                Self::of_bytes(format, &bytes, [rows, cols])
            }
        }
    }

    /// What `fill` writes, in aligned memory.
    pub(crate) fn filled(
        format: &'static WeightFormat,
        [rows, cols]: [usize; 2],
        fill: impl FnOnce(&mut [u8]),
    ) -> Self {
        let len = Storage::Packed(format).num_bytes(&[rows, cols]);
        let region = Region::new(len).unwrap();
        // SAFETY: nothing else uses the region.
        fill(unsafe { region.bytes_mut(0, len) });
        Self { region, format, len: rows * cols, cols }
    }

    pub(crate) fn to_vec_f32(&self) -> Vec<f32> {
        self.view().to_vec_f32()
    }

    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the region is no longer written to.
        unsafe { self.region.bytes(0, self.region.len()) }
    }

    pub(crate) fn view(&self) -> View<'_> {
        let packed = Packed::new(self.bytes(), self.format, (self.len, self.cols));
        View::Packed(packed.expect("as many bytes as the format takes"))
    }
}

pub(crate) fn random(len: usize, stream: u64) -> Vec<f32> {
    let random = Philox::new(7, stream);
    (0..len as u64).map(|i| random.normal(i)).collect()
}

/// Any part of a row unpacks to the same numbers, in any memory.
#[test]
fn parts_of_rows_are_those_of_the_whole() {
    for format in FORMATS {
        for (rows, cols) in [(1, 1), (3, 7), (5, 64), (4, 300), (2, 1025)] {
            let held = PackedMatrix::random(format, [rows, cols], 1);
            let cols = held.cols();
            let whole = held.view().to_vec_f32();
            let packed = held.view().packed();
            for (row, first, len) in [(0, 0, cols), (rows - 1, cols / 3, cols - cols / 3)] {
                let mut part = vec![f32::NAN; len];
                packed.unpack(row * cols + first, &mut part);
                assert_eq!(part, whole[row * cols + first..][..len], "{format:?} {rows}×{cols}");
            }
            let (mut floats, mut narrow) = (vec![0.0; rows * cols], vec![bf16::NAN; rows * cols]);
            let on = Processor::Cpu(Cpu::new(2));
            on.convert(held.view(), ViewMut::F32(&mut floats));
            on.convert(held.view(), ViewMut::Bf16(&mut narrow));
            assert_eq!(floats, whole);
            assert!(narrow.iter().zip(&whole).all(|(x, y)| *x == bf16::from_f32(*y)));
            check_on_gpu(&held, &whole);
        }
    }
}

/// Columns in tiles of half a block or of a few weights are unpacked in the matrix's order.
#[test]
fn tiles_come_out_in_order() {
    for (format, len) in FORMATS.into_iter().flat_map(|format| [(format, 128), (format, 12)]) {
        let tiles = Tiles { groups: 2, per_group: 3, len };
        if !(6 * len).is_multiple_of(format.block) {
            continue;
        }
        let held = PackedMatrix::random(format, [3, 6 * len], 3);
        let stored = held.to_vec_f32();
        let held = PackedMatrix { format: format.tiled(tiles), ..held };
        // Heads 0, 1 and 2 are of the first group, and in the file the first, third and fifth.
        let heads = [0, 2, 4, 1, 3, 5];
        let place = |i: usize| heads[i % (6 * len) / len] * len + i % len;
        let expected: Vec<f32> =
            (0..stored.len()).map(|i| stored[i / (6 * len) * 6 * len + place(i)]).collect();
        assert_eq!(held.to_vec_f32(), expected, "{format:?}");
        let mut part = vec![f32::NAN; 5 * len];
        held.view().packed().unpack(2 * 6 * len + len / 2, &mut part);
        assert_eq!(part, expected[12 * len + len / 2..][..5 * len], "{format:?}");
        check_on_gpu(&held, &expected);
        assert!(std::ptr::eq(format.tiled(tiles), format.tiled(tiles)));
    }
}

/// The GPU unpacks to `whole`.
pub(crate) fn check_on_gpu(held: &PackedMatrix, whole: &[f32]) {
    let Some(gpu) = Gpu::for_tests() else { return };
    let (len, cols) = (held.len, held.cols);
    let source = crate::cuda::Region::new(&gpu, held.bytes().len()).unwrap();
    source.write(0, held.bytes());
    let target = crate::cuda::Region::new(&gpu, 4 * len).unwrap();
    let x = source.slice(0, Storage::Packed(held.format), (len, cols));
    // All rows, then the last alone.
    for first in [0, len / cols - 1] {
        gpu.begin_operation();
        let rows = target.slice(0, DType::F32, (len - first * cols, cols));
        crate::vector::cuda::convert_rows(&gpu, x, (first, cols), rows);
        let found = gpu.download(rows.address(), rows.len());
        assert_eq!(found, whole[first * cols..], "{:?} from row {first}", held.format);
    }
}

#[test]
fn names_lead_back_to_what_they_name() {
    let formats = FORMATS.iter().filter(|format| format.pack.is_some()).map(|format| format.name);
    let names = ["f32", "bf16", "f16"].into_iter().chain(formats);
    assert!(names.eq(Storage::NAMES));
    for name in Storage::NAMES {
        assert_eq!(Storage::from_name(name).map(Storage::name), Some(name));
    }
    assert_eq!(Storage::from_name("int7"), None);
}

#[test]
fn bytes_that_do_not_fit_have_no_view() {
    for format in FORMATS {
        let held = PackedMatrix::random(format, [12, 64], 2);
        let (bytes, cols) = (held.bytes(), held.cols());
        let view = |bytes, size| memory::view(bytes, Storage::Packed(format), size);
        assert!(view(bytes, (12 * cols, cols)).is_some());
        assert!(view(&bytes[1..], (12 * cols, cols)).is_none());
        assert!(view(bytes, (13 * cols, cols)).is_none());
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    for format in FORMATS {
        let size = |shape: &[usize]| Storage::Packed(format).checked_num_bytes(shape);
        let block = format.block;
        assert_eq!(size(&[3, 2 * block]), Ok((format.num_bytes)([3, 2 * block])));
        // A stack of matrices is one matrix.
        assert_eq!(size(&[5, 3, block]), Ok((format.num_bytes)([15, block])));
        for cols in [block + 1, 2 * block - 1].into_iter().filter(|cols| cols % block > 0) {
            let message = size(&[3, cols]).unwrap_err().to_string();
            let name = format.name;
            assert_eq!(
                message,
                format!(
                    "rows of {cols} weights are not whole blocks of {block}, as {name} has them"
                )
            );
            let bytes = [0; 4096];
            assert!(memory::view(&bytes, Storage::Packed(format), (3 * cols, cols)).is_none());
        }
        for shape in [&[usize::MAX, 2][..], &[1 << 40, 1 << 40], &[1 << 60, 0, 256], &[1 << 62]] {
            let message = size(shape).map_err(|error| error.to_string());
            let is_empty = shape.contains(&0);
            assert!(is_empty || message.unwrap_err().contains("larger than any memory"));
        }
    }
}
