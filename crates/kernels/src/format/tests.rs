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
    pub(crate) fn new(format: &'static WeightFormat, x: &[f32], cols: usize) -> Self {
        let len = Storage::Packed(format).num_bytes(&[x.len() / cols, cols]);
        let region = Region::new(len).unwrap();
        // SAFETY: nothing else uses the region.
        (format.pack)(&Cpu::new(1), Floats::F32(x), cols, unsafe { region.bytes_mut(0, len) });
        Self { region, format, len: x.len(), cols }
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

fn random(len: usize, stream: u64) -> Vec<f32> {
    let random = Philox::new(7, stream);
    (0..len as u64).map(|i| random.normal(i)).collect()
}

/// Any part of a row unpacks to the same numbers, in any memory.
#[test]
fn parts_of_rows_are_those_of_the_whole() {
    for format in FORMATS {
        for (rows, cols) in [(1, 1), (3, 7), (5, 64), (4, 300), (2, 1025)] {
            let held = PackedMatrix::new(format, &random(rows * cols, 1), cols);
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

fn check_on_gpu(held: &PackedMatrix, whole: &[f32]) {
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
    let names = ["f32", "bf16", "f16"].into_iter().chain(FORMATS.map(|format| format.name));
    assert!(names.eq(Storage::NAMES));
    for name in Storage::NAMES {
        assert_eq!(Storage::from_name(name).map(Storage::name), Some(name));
    }
    assert_eq!(Storage::from_name("int7"), None);
}

#[test]
fn bytes_that_do_not_fit_have_no_view() {
    for format in FORMATS {
        let held = PackedMatrix::new(format, &random(12 * 64, 2), 64);
        let bytes = held.bytes();
        let view = |bytes, size| memory::view(bytes, Storage::Packed(format), size);
        assert!(view(bytes, (12 * 64, 64)).is_some());
        assert!(view(&bytes[1..], (12 * 64, 64)).is_none());
        assert!(view(bytes, (13 * 64, 64)).is_none());
    }
}
