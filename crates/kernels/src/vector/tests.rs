use super::*;
use crate::cpu::Isa;
use crate::cuda::{Gpu, Region};
use crate::element::{DType, bf16, f16};
use crate::random::Philox;

const LENGTHS: [usize; 7] = [0, 1, 15, 17, CHUNK - 1, CHUNK + 1, 3 * CHUNK + 5];

fn random(len: usize, stream: u64) -> Vec<f32> {
    let random = Philox::new(2, stream);
    (0..len as u64).map(|i| random.normal(i)).collect()
}

fn cpus() -> Vec<Cpu> {
    let of_isa = |isa| (1..=3).map(move |threads| Cpu::with_isa(threads, isa));
    Isa::available().into_iter().flat_map(of_isa).collect()
}

#[test]
fn elementwise_operations_at_any_length() {
    let cpu = Cpu::new(3);
    for len in LENGTHS {
        let (x, mut y) = (random(len, 1), random(len, 2));
        let narrow: Vec<bf16> = x.iter().map(|&v| bf16::from_f32(v)).collect();
        let half: Vec<f16> = x.iter().map(|&v| f16::from_f32(v)).collect();
        let sum: Vec<f32> = narrow.iter().zip(&y).map(|(x, y)| x.to_f32() + y).collect();
        add_assign(&cpu, View::Bf16(&narrow), ViewMut::F32(&mut y));
        assert_eq!(y, sum);
        let mut converted = vec![bf16::NAN; len];
        convert(&cpu, View::F32(&x), ViewMut::Bf16(&mut converted));
        assert_eq!(converted, narrow);
        convert(&cpu, View::F16(&half), ViewMut::F32(&mut y));
        assert!(y.iter().zip(&half).all(|(y, x)| *y == x.to_f32()));
        zero(&cpu, ViewMut::F32(&mut y));
        assert!(y.iter().all(|&y| y.to_bits() == 0));
    }
}

#[test]
fn sums_of_squares_have_the_same_bits_everywhere() {
    for len in LENGTHS {
        let x = random(len, 3);
        let first = sum_of(&Cpu::with_isa(1, Isa::Scalar), &x);
        let exact: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        assert!((first - exact).abs() <= 1e-6 * exact, "{first} against {exact}");
        assert!(cpus().iter().all(|cpu| sum_of(cpu, &x).to_bits() == first.to_bits()));
    }
    let mut x = random(CHUNK + 3, 4);
    x[CHUNK] = f32::NAN;
    assert!(sum_of(&Cpu::new(2), &x).is_nan(), "a bad gradient must show");
}

/// Of one array.
fn sum_of(cpu: &Cpu, x: &[f32]) -> f64 {
    sum_of_squares(cpu, &[x]).total
}

/// Arrays of all lengths, in one list of tasks per operation, against each alone.
#[test]
fn many_arrays_are_summed_and_cleared_at_once() {
    let cpu = Cpu::new(3);
    let mut arrays: Vec<Vec<f32>> = (30..).zip(LENGTHS).map(|(i, len)| random(len, i)).collect();
    let found = sum_of_squares(&cpu, &arrays.iter().map(Vec::as_slice).collect::<Vec<_>>());
    let each: Vec<f64> = arrays.iter().map(|x| sum_of(&cpu, x)).collect();
    assert_eq!((found.total, found.of_arrays), (each.iter().sum(), each));
    zero_all(&cpu, arrays.iter_mut().map(Vec::as_mut_slice).collect());
    assert!(arrays.iter().flatten().all(|x| x.to_bits() == 0));
}

/// Arrays of all lengths, processed in one launch per operation.
#[test]
fn a_gpu_sums_and_clears_many_arrays_at_once() {
    let Some(gpu) = Gpu::for_tests() else { return };
    let on = Processor::Cuda(gpu.clone());
    let arrays: Vec<Vec<f32>> = (10..).zip(LENGTHS).map(|(i, len)| random(len, i)).collect();
    let regions: Vec<Region> =
        arrays.iter().map(|x| Region::new(&gpu, 4 * x.len()).unwrap()).collect();
    for (region, x) in regions.iter().zip(&arrays) {
        region.write(0, crate::memory::bytes_of(View::F32(x)));
    }
    let slices = || regions.iter().map(|r| r.slice(0, DType::F32, (r.len() / 4, 1)));
    on.begin();
    let found = on.sum_of_squares(&slices().map(View::Cuda).collect::<Vec<_>>());
    let of = |x: &[f32]| x.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
    let each: Vec<f64> = arrays.iter().map(|x| of(x)).collect();
    let total: f64 = each.iter().sum();
    let pairs = found.of_arrays.iter().zip(&each).chain([(&found.total, &total)]);
    for (found, exact) in pairs {
        assert!((found - exact).abs() <= 1e-6 * exact, "{found} against {exact}");
    }
    assert_eq!(found.of_arrays.len(), arrays.len());
    on.begin();
    on.zero_all(slices().map(ViewMut::of_gpu).collect());
    let found = on.sum_of_squares(&slices().map(View::Cuda).collect::<Vec<_>>());
    assert_eq!((found.total, found.of_arrays), (0.0, vec![0.0; arrays.len()]));
}

#[test]
fn column_sums_are_added_to_what_is_there() {
    for (rows, width, col, n) in [(1, 1, 0, 1), (3, 7, 2, 4), (501, 300, 100, 200)] {
        let x = random(rows * width, 5);
        for cpu in cpus() {
            let mut sums = vec![1.0; n];
            add_column_sums(&cpu, View::F32(&x), width, col, &mut sums);
            for (j, sum) in sums.iter().enumerate() {
                let column = (0..rows).map(|i| x[i * width + col + j]);
                assert_eq!(*sum, column.fold(1.0, |a, b| a + b));
            }
        }
    }
}

#[test]
fn rows_are_gathered_and_scattered() {
    let (h, cpu) = (5, Processor::Cpu(Cpu::new(2)));
    let x = random(7 * h, 6);
    for rows in [vec![], vec![6], vec![3, 0, 6, 2]] {
        // Longer than needed: the rest is left unchanged.
        let mut gathered = vec![9.0; 4 * h];
        cpu.gather_rows(View::F32(&x), h, &rows, ViewMut::F32(&mut gathered));
        let mut back = vec![0.0; 7 * h];
        cpu.scatter_rows(View::F32(&gathered), h, 0..h, &rows, ViewMut::F32(&mut back));
        for row in 0..7 {
            let kept = rows.contains(&(row as u32));
            let expected = if kept { &x[row * h..][..h] } else { &[0.0; 5] };
            assert_eq!(&back[row * h..][..h], expected);
        }
        assert!(gathered[rows.len() * h..].iter().all(|&g| g == 9.0));
    }
}

/// Two columns of the first two rows of four, on the CPU and a GPU.
#[test]
fn columns_of_rows_are_scattered() {
    let x: Vec<f32> = (0..12).map(|i| i as f32).collect();
    let (rows, expected) = ([2, 0], [5.0, 6.0, -1.0, -1.0, 1.0, 2.0, -1.0, -1.0]);
    let mut y = vec![-1.0; 8];
    scatter_rows(View::F32(&x), 4, 1..3, &rows, ViewMut::F32(&mut y));
    assert_eq!(y, expected);
    let Some(gpu) = Gpu::for_tests() else { return };
    let bytes = |x: &[f32]| x.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let (from, to) = (Region::new(&gpu, 48).unwrap(), Region::new(&gpu, 32).unwrap());
    from.write(0, &bytes(&x));
    to.write(0, &bytes(&[-1.0; 8]));
    let (x, y) = (from.slice(0, DType::F32, (12, 4)), to.slice(0, DType::F32, (8, 2)));
    Processor::Cuda(gpu).scatter_rows(View::Cuda(x), 4, 1..3, &rows, ViewMut::of_gpu(y));
    let mut found = vec![0; 32];
    to.read(0, &mut found);
    assert_eq!(found, bytes(&expected));
}

#[test]
fn int8_rows_are_off_by_half_a_step() {
    let (rows, cols) = (7, 83);
    let random = crate::random::Philox::new(3, 1);
    let x: Vec<f32> = (0..(rows * cols) as u64)
        .map(|i| random.normal(i) * 10f32.powi(i as i32 / 83 - 3))
        .collect();
    for isa in Isa::available() {
        let (mut values, mut scales) = (vec![0; x.len()], vec![0.0; rows]);
        let cpu = Cpu::with_isa(2, isa);
        let y = Int8RowsMut { values: &mut values, scales: &mut scales };
        quantise_rows(&cpu, Columns { x: View::F32(&x), width: cols, col: 0 }, None, y);
        for (i, (x, value)) in x.iter().zip(&values).enumerate() {
            let read = (f32::from(*value) - 128.0) * scales[i / cols];
            assert!((x - read).abs() <= 0.5001 * scales[i / cols], "{isa:?}: {read} for {x}");
        }
        for row in values.chunks_exact(cols) {
            assert!(row.iter().any(|&v| v == 1 || v == 255), "the largest becomes ±127");
        }
    }
}

#[test]
fn columns_are_quantised_with_their_factors() {
    let x = [1.0, 9.0, -2.0, 4.0, 9.0, 0.5];
    let (mut values, mut scales) = ([0; 4], [0.0; 2]);
    let factors = Some(&[3.0, 0.5][..]);
    // Rows of three, without the first column.
    let y = Int8RowsMut { values: &mut values, scales: &mut scales };
    quantise_rows(&Cpu::new(1), Columns { x: View::F32(&x), width: 3, col: 1 }, factors, y);
    assert_eq!(scales, [27.0 / 127.0, 27.0 / 127.0]);
    assert_eq!(values, [255, 123, 255, 129]);
}

#[test]
fn rows_without_a_scale() {
    let x = [0.0, -0.0, f32::NAN, 1.0, 1.0, f32::NEG_INFINITY, 1e-40, 0.0];
    let (mut values, mut scales) = ([0; 8], [1.0; 4]);
    let y = Int8RowsMut { values: &mut values, scales: &mut scales };
    quantise_rows(&Cpu::new(1), Columns { x: View::F32(&x), width: 2, col: 0 }, None, y);
    assert!(scales[0] == 0.0 && scales[1].is_nan() && scales[2].is_nan());
    assert_eq!((&values[..2], &values[6..]), (&[128, 128][..], &[128, 128][..]));
}
