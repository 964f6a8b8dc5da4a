use super::*;
use crate::cpu::{Cpu, Isa};
use crate::cuda::{Gpu, Region};
use crate::element::{DType, bf16};
use crate::format::tests::PackedMatrix;
use crate::format::{FORMATS, Int8RowsMut, Storage};
use crate::random::Philox;
use crate::vector::{Columns, quantise_rows};
use crate::view::ViewMut;

fn random(len: usize, stream: u64) -> Vec<f32> {
    let random = Philox::new(1, stream);
    (0..len as u64).map(|i| random.normal(i)).collect()
}

fn f64s(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&v| f64::from(v)).collect()
}

/// Both layouts of both operands, two terms, bias, residual: everything that operations use.
fn run(
    cpu: &Cpu,
    compute: DType,
    (m, n, k): (usize, usize, usize),
    a_t: bool,
    b_t: bool,
) -> Vec<f32> {
    let (a, b) = (random(m * k, 1), random(k * n, 2));
    let (a2, b2) = (random(m * 3, 3), random(3 * n, 4));
    let matrix = |data, rows, cols, transposed| match transposed {
        false => Matrix::rows(View::F32(data), cols),
        true => Matrix::rows(View::F32(data), rows).transposed(),
    };
    let terms = [
        Term::new(matrix(&a, m, k, a_t), matrix(&b, k, n, b_t), k),
        Term::new(matrix(&a2, m, 3, false), matrix(&b2, 3, n, false), 3),
    ];
    let (bias, add) = (random(n, 5), random(m * n, 6));
    let epilogue = Epilogue {
        scale: 0.5,
        bias: Some(View::F32(&bias)),
        add: Some(View::F32(&add)),
        accumulate: true,
    };
    let mut out = random(m * n, 7);
    let product = Product { terms: &terms, epilogue, output: OutputRegion::whole(m, n) };
    gemm(cpu, compute, &[product], ViewMut::F32(&mut out));
    out
}

fn expected(compute: DType, (m, n, k): (usize, usize, usize), a_t: bool, b_t: bool) -> Vec<f64> {
    let rounded = |x: Vec<f32>| match compute {
        DType::Bf16 => x.iter().map(|&v| bf16::from_f32(v).to_f32()).collect(),
        _ => x,
    };
    let (a, b) = (f64s(&rounded(random(m * k, 1))), f64s(&rounded(random(k * n, 2))));
    let a = if a_t { reference::transpose(k, m, &a) } else { a };
    let b = if b_t { reference::transpose(n, k, &b) } else { b };
    let (a2, b2) = (f64s(&rounded(random(m * 3, 3))), f64s(&rounded(random(3 * n, 4))));
    let first = reference::gemm(m, n, k, &a, &b);
    let second = reference::gemm(m, n, 3, &a2, &b2);
    let (bias, add, old) = (random(n, 5), random(m * n, 6), random(m * n, 7));
    (0..m * n)
        .map(|i| 0.5 * (first[i] + second[i]) + f64::from(bias[i % n]) + f64::from(add[i] + old[i]))
        .collect()
}

#[test]
fn agrees_with_the_reference_on_odd_sizes() {
    let cpu = Cpu::new(2);
    // The last has more rows than are summed at a time in several passes.
    for size in [
        (1, 1, 1),
        (3, 5, 7),
        (8, 32, 16),
        (13, 70, 300),
        (200, 33, 259),
        (70, 300, 40),
        (1030, 2, 2060),
    ] {
        for compute in [DType::F32, DType::Bf16] {
            for (a_t, b_t) in [(false, false), (false, true), (true, false), (true, true)] {
                let ours = run(&cpu, compute, size, a_t, b_t);
                let exact = expected(compute, size, a_t, b_t);
                let worst = ours
                    .iter()
                    .zip(&exact)
                    .map(|(&x, &y)| (f64::from(x) - y).abs())
                    .fold(0.0, f64::max);
                assert!(worst < 3e-6 * (size.2 as f64 + 20.0).sqrt() * 4.0, "{size:?}: {worst:e}");
            }
        }
    }
}

#[test]
fn bits_do_not_depend_on_threads_or_instruction_set() {
    // Longer than one pass, and with more rows than are summed at a time then.
    for size in [(150, 130, 271), (150, 50, 4300), (1030, 2, 2060)] {
        for compute in [DType::F32, DType::Bf16] {
            let first = run(&Cpu::with_isa(1, Isa::Scalar), compute, size, false, true);
            for isa in Isa::available() {
                for threads in [1, 2, 3] {
                    let again = run(&Cpu::with_isa(threads, isa), compute, size, false, true);
                    assert!(first == again, "{isa:?}, {compute:?}, {threads} threads");
                }
            }
        }
    }
}

#[test]
fn writes_only_its_columns() {
    let cpu = Cpu::new(1);
    let (a, b) = (random(2 * 4, 1), random(4 * 3, 2));
    let mut out = vec![9.0; 2 * 10];
    let terms = [Term::new(Matrix::rows(View::F32(&a), 4), Matrix::rows(View::F32(&b), 3), 4)];
    let output = OutputRegion::columns(2, 3, 10, 5);
    let product = Product { terms: &terms, epilogue: Epilogue::default(), output };
    gemm(&cpu, DType::F32, &[product], ViewMut::F32(&mut out));
    for (i, &v) in out.iter().enumerate() {
        assert_eq!(v == 9.0, !(5..8).contains(&(i % 10)), "column {}", i % 10);
    }
}

/// Products of several sizes that add to arrays of their own have the bits of each alone, and of
/// their transposes, so that a gradient may be computed either way.
#[test]
fn products_into_arrays_of_their_own() {
    let sizes = [(16, 200, 17), (5, 130, 0), (1, 1, 3), (192, 16, 9)];
    let operands = |(m, n, k), i| (random(m * k, 10 + i), random(k * n, 20 + i), random(m * n, i));
    let arrays: Vec<_> = sizes.iter().zip(0..).map(|(&size, i)| operands(size, i)).collect();
    let epilogue = Epilogue { accumulate: true, ..Epilogue::default() };
    for (isa, compute) in isas_and_computes() {
        let cpu = Cpu::with_isa(2, isa);
        let terms = sizes.iter().zip(&arrays).map(|(&(m, n, k), (a, b, _))| {
            let a = Matrix::rows(View::F32(a), m).transposed();
            let b = Matrix::rows(View::F32(b), n);
            ([Term::new(a, b, k)], [Term::new(b.transposed(), a.transposed(), k)])
        });
        let terms: Vec<_> = terms.collect();
        let product = |(i, &(m, n, _)): (usize, &(usize, usize, usize))| {
            let ((one, other), output) = (&terms[i], OutputRegion::whole(m, n));
            let as_is = Product { terms: one, epilogue, output };
            (as_is, Product { terms: other, epilogue, output: output.transposed() })
        };
        let products: Vec<_> = sizes.iter().enumerate().map(product).collect();
        let mut together: Vec<_> = arrays.iter().map(|(_, _, out)| out.clone()).collect();
        let as_is: Vec<_> = products.iter().map(|(as_is, _)| *as_is).collect();
        let outputs = together.iter_mut().map(|out| ViewMut::F32(out)).collect();
        gemm_each(&cpu, compute, &as_is, outputs);
        for (i, (as_is, transposed)) in products.iter().enumerate() {
            for product in [as_is, transposed] {
                let mut alone = arrays[i].2.clone();
                gemm(&cpu, compute, &[*product], ViewMut::F32(&mut alone));
                assert!(together[i] == alone, "{isa:?}, {compute:?}, product {i}");
            }
        }
    }
}

/// An int8 matrix.
fn int8(x: &[f32], cols: usize) -> PackedMatrix {
    let Storage::Packed(format) = Storage::INT8 else { unreachable!("a format") };
    PackedMatrix::new(format, x, cols)
}

/// An int8 term, with scales of columns or along the contraction, followed by a float term.
fn run_int8(cpu: &Cpu, (m, n, k): (usize, usize, usize), along: bool) -> Vec<f32> {
    let (a, b) = (int8(&random(m * k, 1), k), random(k * n, 2));
    let (b, transposed) = (int8(&b, if along { n } else { k }), !along);
    let view = if along { View::Packed(b.view().packed().without_scales()) } else { b.view() };
    let right = match transposed {
        true => Matrix::rows(view, k).transposed(),
        false => Matrix::rows(view, n),
    };
    let (a2, b2) = (random(m * 5, 3), random(5 * n, 4));
    let (a2, b2) = (Matrix::rows(View::F32(&a2), 5), Matrix::rows(View::F32(&b2), n));
    let terms = [Term::new(Matrix::rows(a.view(), k), right, k), Term::new(a2, b2, 5)];
    let mut out = vec![0.0; m * n];
    let epilogue = Epilogue::default();
    let product = Product { terms: &terms, epilogue, output: OutputRegion::whole(m, n) };
    gemm(cpu, DType::F32, &[product], ViewMut::F32(&mut out));
    out
}

fn expected_int8((m, n, k): (usize, usize, usize), along: bool) -> Vec<f64> {
    let a = int8(&random(m * k, 1), k).view().to_vec_f32();
    let b = int8(&random(k * n, 2), if along { n } else { k });
    let mut values = b.view().to_vec_f32();
    if along {
        let scales = values.chunks_exact_mut(n).zip(b.view().packed().int8().scales);
        scales.for_each(|(row, scale)| row.iter_mut().for_each(|v| *v /= scale));
    }
    let b = if along { f64s(&values) } else { reference::transpose(n, k, &f64s(&values)) };
    let first = reference::gemm(m, n, k, &f64s(&a), &b);
    let second = reference::gemm(m, n, 5, &f64s(&random(m * 5, 3)), &f64s(&random(5 * n, 4)));
    first.iter().zip(second).map(|(x, y)| x + y).collect()
}

#[test]
fn int8_is_exact_and_the_same_everywhere() {
    // The last is longer than one integer sum.
    for size in [(1, 1, 4), (13, 70, 72), (200, 33, 576), (70, 300, 40), (30, 50, 9000)] {
        for along in [false, true] {
            let first = run_int8(&Cpu::with_isa(1, Isa::Scalar), size, along);
            let exact = expected_int8(size, along);
            let greatest = exact.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
            for (x, y) in first.iter().zip(&exact) {
                assert!((f64::from(*x) - y).abs() < 1e-6 * greatest, "{size:?}: {x} for {y}");
            }
            for isa in Isa::available() {
                for threads in [1, 2, 3] {
                    let again = run_int8(&Cpu::with_isa(threads, isa), size, along);
                    assert!(first == again, "{isa:?}, {size:?}, {threads} threads");
                }
            }
        }
    }
}

/// Packed weights of any format give the same bits as their unpacked values.
#[test]
fn packed_weights_enter_products_of_floats() {
    for format in FORMATS {
        // The last has rows of whole blocks in every format, which are packed without a detour.
        let sizes = [(3, 5, 7), (13, 70, 300), (70, 300, 40), (5, 37, 4300), (13, 96, 320)];
        // Whole blocks make them larger.
        let sizes = if format.block > 1 { &sizes[..2] } else { &sizes };
        for &(m, n, k) in sizes {
            // As `x · Wᵀ`, and as `x · W`.
            for transposed in [true, false] {
                let shape = if transposed { [n, k] } else { [k, n] };
                let held = PackedMatrix::random(format, shape, 2);
                let (plain, cols) = (held.view().to_vec_f32(), held.cols());
                let (n, k) = if transposed { (n, cols) } else { (cols, k) };
                let x = random(m * k, 1);
                let matrix = |data| match transposed {
                    true => Matrix::rows(data, k).transposed(),
                    false => Matrix::rows(data, n),
                };
                for (isa, compute) in isas_and_computes() {
                    let cpu = Cpu::with_isa(2, isa);
                    let [packed, plain] = [held.view(), View::F32(&plain)]
                        .map(|b| product_with(&cpu, compute, (m, n, k), &x, matrix(b)));
                    assert!(packed == plain, "{format:?}, {isa:?}, {compute:?}, {m}×{n}×{k}");
                }
            }
        }
    }
}

fn isas_and_computes() -> impl Iterator<Item = (Isa, DType)> {
    let computes = |isa| [DType::F32, DType::Bf16].map(|compute| (isa, compute));
    Isa::available().into_iter().flat_map(computes)
}

/// `x [m, k] · b [k, n]`
fn product_with(
    cpu: &Cpu,
    compute: DType,
    (m, n, k): (usize, usize, usize),
    x: &[f32],
    b: Matrix<'_>,
) -> Vec<f32> {
    let mut out = vec![0.0; m * n];
    let terms = [Term::new(Matrix::rows(View::F32(x), k), b, k)];
    let (epilogue, output) = (Epilogue::default(), OutputRegion::whole(m, n));
    let product = Product { terms: &terms, epilogue, output };
    gemm(cpu, compute, &[product], ViewMut::F32(&mut out));
    out
}

/// Less than a block and several, in one go and in two, a part of wider rows.
#[test]
fn weight_gradients_agree_with_the_reference() {
    for (t, m, n) in [(1, 1, 1), (3, 5, 50), (37, 97, 100), (1030, 20, 49)] {
        let (width, col) = (m + 3, 2);
        let (wide, x, old) = (random(t * width, 1), random(t * n, 2), random(m * n, 3));
        let d_y: Vec<f32> = wide.chunks(width).flat_map(|row| row[col..col + m].to_vec()).collect();
        for compute in [DType::F32, DType::Bf16] {
            let rounded = |x: &[f32]| match compute {
                DType::Bf16 => x.iter().map(|&v| bf16::from_f32(v).to_f32()).collect(),
                _ => x.to_vec(),
            };
            let transposed = reference::transpose(t, m, &f64s(&rounded(&d_y)));
            let exact = reference::gemm(m, n, t, &transposed, &f64s(&rounded(&x)));
            let run = |cpu: &Cpu| {
                let mut d_w = old.clone();
                let mut workspace = vec![f32::NAN; weight_workspace_len(Target::Cpu, t, n)];
                let d_y = Matrix::rows(View::F32(&wide), width).from_col(col);
                let x = Matrix::rows(View::F32(&x), n);
                let gradient = WeightGradient { t, m, n, d_y, x };
                add_weight_gradient(cpu, compute, gradient, &mut workspace, &mut d_w);
                d_w
            };
            let first = run(&Cpu::with_isa(1, Isa::Scalar));
            for (isa, threads) in Isa::available().into_iter().flat_map(|i| [(i, 1), (i, 3)]) {
                assert!(run(&Cpu::with_isa(threads, isa)) == first, "{isa:?}, {threads} threads");
            }
            for ((found, exact), old) in first.iter().zip(&exact).zip(&old) {
                let exact = exact + f64::from(*old);
                assert!((f64::from(*found) - exact).abs() < 2e-4, "{found} against {exact}");
            }
        }
    }
}

/// Every FP8 number, and the midpoint of every two, which rounds to even.
#[test]
fn a_gpu_rounds_to_fp8() {
    let Some(gpu) = Gpu::for_tests() else { return };
    for (kind, greatest) in [(Fp8::E4m3, 0x7e), (Fp8::E5m2, 0x7b)] {
        let value = |code: u8| kind.to_f32(code);
        let mut cases: Vec<(f32, u8)> = Vec::new();
        for code in 0..=greatest {
            cases.push((value(code), code));
            if code < greatest {
                let even = code + (code & 1);
                cases.push(((value(code) + value(code + 1)) / 2.0, even));
            }
        }
        let negative: Vec<_> = cases.iter().map(|&(x, code)| (-x, code | 0x80)).collect();
        cases.extend(negative);
        // Two rows, the second of which is misaligned.
        let cols = cases.len();
        let row: Vec<bf16> = cases.iter().map(|&(x, _)| bf16::from_f32(x)).collect();
        assert!(row.iter().zip(&cases).all(|(x, case)| x.to_f32() == case.0));
        let x = [&row[..], &[bf16::NAN], &row].concat();
        let region = Region::new(&gpu, 2 * x.len()).unwrap();
        region.write(0, crate::memory::bytes_of(View::Bf16(&x)));
        let all = View::Cuda(region.slice(0, DType::Bf16, (x.len(), cols + 1)));
        gpu.begin_operation();
        let found = cuda::fp8_rows(&gpu, kind, Matrix::rows(all, cols + 1), (2, cols));
        assert_eq!(gpu.download(found.scale, 1), [1.0]);
        let words = gpu.download(found.operand.address, cols / 2);
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        for (i, &(x, code)) in cases.iter().chain(&cases).take(bytes.len()).enumerate() {
            // Zeros of either sign are equal.
            let same = bytes[i] == code || value(bytes[i]) == value(code);
            assert!(same, "{kind:?} {x}: {:#x}, expected {code:#x}", bytes[i]);
        }
    }
}

/// Scales map any magnitude to the range of FP8; zeros stay zeros.
#[test]
fn fp8_scales_follow_the_largest_magnitude() {
    let Some(gpu) = Gpu::for_tests() else { return };
    for magnitude in [0.0, 1e-20f32, 3e-3, 1.0, 7e4, 1e30] {
        let (m, k) = (3, 32);
        let x: Vec<bf16> = random(m * k, 9).iter().map(|x| bf16::from_f32(x * magnitude)).collect();
        let region = Region::new(&gpu, 2 * x.len()).unwrap();
        region.write(0, crate::memory::bytes_of(View::Bf16(&x)));
        let all = View::Cuda(region.slice(0, DType::Bf16, (x.len(), k)));
        gpu.begin_operation();
        let found = cuda::fp8_rows(&gpu, Fp8::E4m3, Matrix::rows(all, k), (m, k));
        let scale = gpu.download(found.scale, 1)[0];
        let words = gpu.download(found.operand.address, m * k / 4);
        let bytes = words.iter().flat_map(|word| word.to_le_bytes());
        let greatest = x.iter().map(|x| x.to_f32().abs()).fold(0.0, f32::max);
        for (byte, x) in bytes.zip(&x) {
            let (found, exact) = (Fp8::E4m3.to_f32(byte) * scale, x.to_f32());
            let allowed = (exact.abs() / 16.0).max(greatest / 448.0 / 1024.0);
            assert!((found - exact).abs() <= 1.001 * allowed, "{found} for {exact}");
        }
    }
}

/// The same bytes and scales as on the CPU, with and without factors, including rows that are zero,
/// not finite, or misaligned.
#[test]
fn a_gpu_quantises_as_the_cpu_does() {
    let Some(gpu) = Gpu::for_tests() else { return };
    let (m, k, stride, first) = (6, 80, 88, 2);
    let mut x: Vec<bf16> = random(m * stride, 4).iter().map(|&x| bf16::from_f32(x)).collect();
    x[stride..2 * stride].fill(bf16::from_f32(0.0));
    x[3 * stride + 40] = bf16::NAN;
    x[4 * stride + 41] = bf16::from_f32(f32::INFINITY);
    let factors: Vec<f32> = random(k, 5);
    let region = Region::new(&gpu, 2 * x.len() + 4 * k).unwrap();
    region.write(0, crate::memory::bytes_of(View::F32(&factors)));
    region.write(4 * k, crate::memory::bytes_of(View::Bf16(&x)));
    let all = View::Cuda(region.slice(4 * k, DType::Bf16, (x.len(), stride)));
    let factors = Some(&factors[..]);
    for (start, factors) in [(0, None), (first, None), (0, factors), (first, factors)] {
        let (mut values, mut scales) = (vec![0; m * k], vec![0.0; m]);
        let columns = Columns { x: View::Bf16(&x), width: stride, col: start };
        let y = Int8RowsMut { values: &mut values, scales: &mut scales };
        quantise_rows(&Cpu::new(1), columns, factors, y);
        gpu.begin_operation();
        let on_gpu = Matrix::rows(all, stride).from_col(start);
        let address = region.slice(0, DType::F32, (k, k)).address();
        let found = cuda::int8_rows(&gpu, on_gpu, (m, k), factors.map(|_| address));
        let words = gpu.download(found.operand.address, m * k / 4);
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let found = gpu.download(found.scales, m);
        for row in 0..m {
            let is_finite = row != 3 && row != 4;
            assert!(found[row] == scales[row] || (!is_finite && found[row].is_nan()), "row {row}");
            let (found, expected) = (&bytes[row * k..][..k], &values[row * k..][..k]);
            let same = found.iter().zip(expected).all(|(found, value)| *found == value ^ 0x80);
            assert!(same || !is_finite, "row {row}, {factors:?}");
        }
    }
}

/// Integer sums that are computed a part of the rows at a time, with an addend.
#[test]
fn a_gpu_multiplies_bytes_in_parts() {
    let Some(gpu) = Gpu::for_tests() else { return };
    let (m, n, k) = (600, 32, 48);
    let (x, w, add) = (random(m * k, 1), random(n * k, 2), random(m * n, 3));
    let x: Vec<bf16> = x.iter().map(|&x| bf16::from_f32(x)).collect();
    let w = int8(&w, k);
    let bytes_of_w = w.bytes();
    let region = Region::new(&gpu, 2 * m * k + bytes_of_w.len() + 8 * m * n).unwrap();
    let (at_w, at_add) = (2 * m * k, 2 * m * k + bytes_of_w.len());
    let at_y = at_add + 4 * m * n;
    region.write(0, crate::memory::bytes_of(View::Bf16(&x)));
    region.write(at_w, bytes_of_w);
    let w = w.view().packed().int8();
    region.write(at_add, crate::memory::bytes_of(View::F32(&add)));
    let on_gpu = |at, dtype, len, cols| region.slice(at, dtype, (len, cols));
    let a = Matrix::rows(View::Cuda(on_gpu(0, DType::Bf16, m * k, k)), k);
    let b = Matrix::rows(View::Cuda(region.slice(at_w, Storage::INT8, (n * k, k))), k).transposed();
    let (term, y) = (Term::new(a, b, k), on_gpu(at_y, DType::F32, m * n, n));
    let add_on_gpu = on_gpu(at_add, DType::F32, m * n, n).address();
    // In parts, and all at once, as by default.
    let [found, at_once] = [32 << 10, cuda::SUMS_BYTES].map(|sums_bytes| {
        gpu.begin_operation();
        let output = &OutputRegion::whole(m, n);
        let d = crate::cuda::Operand { address: y.address(), row_stride: n, col_stride: 1 };
        let (c, d_dtype) = (Some(add_on_gpu), DType::F32);
        cuda::Int8Matmul { term: &term, output, scale: 0.5, c, d, d_dtype, sums_bytes }
            .launch(&gpu, &mut Default::default());
        gpu.download(y.address(), m * n)
    });
    assert_eq!(found, at_once);

    let (mut bytes, mut scales) = (vec![0; m * k], vec![0.0; m]);
    let y = Int8RowsMut { values: &mut bytes, scales: &mut scales };
    quantise_rows(&Cpu::new(1), Columns { x: View::Bf16(&x), width: k, col: 0 }, None, y);
    let value = |byte: u8| i64::from(byte) - 128;
    for (i, found) in found.iter().enumerate() {
        let (row, col) = (i / n, i % n);
        let product = |p: usize| value(bytes[row * k + p]) * value(w.values[col * k + p]);
        let sum = (0..k).map(product).sum::<i64>() as f64;
        let exact =
            0.5 * sum * f64::from(scales[row]) * f64::from(w.scales[col]) + f64::from(add[i]);
        assert!((f64::from(*found) - exact).abs() < 1e-5, "row {row}: {found}, {exact}");
    }
}

/// If some rows have terms of their own, each part has the same bits as alone.
#[test]
fn terms_of_some_rows_change_no_bit() {
    let ranges = [(0, 3), (3, 3), (3, 20), (41, 107), (130, usize::MAX)];
    // The last is longer than one pass.
    for (m, n, k) in [(150, 70, 40), (133, 100, 2100)] {
        for (isa, compute) in isas_and_computes() {
            let run = |cpu: &Cpu, rows: std::ops::Range<usize>| {
                product_of_ranges(cpu, compute, (m, n, k), &ranges, rows)
            };
            let together = run(&Cpu::with_isa(1, isa), 0..m);
            for threads in [2, 3] {
                assert!(run(&Cpu::with_isa(threads, isa), 0..m) == together, "{threads} threads");
            }
            let mut bounds = vec![0, m];
            bounds.extend(ranges.iter().flat_map(|&(first, end)| [first, end.min(m)]));
            bounds.sort();
            for bounds in bounds.windows(2) {
                let alone = run(&Cpu::with_isa(2, isa), bounds[0]..bounds[1]);
                let part = &together[bounds[0] * n..bounds[1] * n];
                assert!(alone == part, "{isa:?}, {compute:?}, rows {bounds:?}");
            }
        }
    }
}

/// Rows `rows` of a product with one term for all rows and one for each of `ranges`, whose `a` is
/// NaN in other rows.
fn product_of_ranges(
    cpu: &Cpu,
    compute: DType,
    (m, n, k): (usize, usize, usize),
    ranges: &[(usize, usize)],
    rows: std::ops::Range<usize>,
) -> Vec<f32> {
    let (a, b, ranks) = (random(m * k, 1), random(k * n, 2), 3..);
    let small = |(i, (&(first, end), rank)): (usize, (&(usize, usize), usize))| {
        let mut a = random(m * rank, 10 + i as u64);
        let is_inside = |row: usize| (first..end).contains(&row);
        let outside = a.iter_mut().enumerate().filter(|(at, _)| !is_inside(at / rank));
        outside.for_each(|(_, x)| *x = f32::NAN);
        (a, random(rank * n, 20 + i as u64), rank)
    };
    let small: Vec<_> = ranges.iter().zip(ranks).enumerate().map(small).collect();
    let from_row = |a, cols| Matrix { offset: rows.start * cols, ..Matrix::rows(a, cols) };
    let mut terms = vec![Term::new(from_row(View::F32(&a), k), Matrix::rows(View::F32(&b), n), k)];
    for ((a, b, rank), &(first, end)) in small.iter().zip(ranges) {
        let (a, b) = (from_row(View::F32(a), *rank), Matrix::rows(View::F32(b), n));
        let first = first.saturating_sub(rows.start);
        let rows = Rows { first, end: end.saturating_sub(rows.start) };
        terms.push(Term { rows, ..Term::new(a, b, *rank) });
    }
    let mut out = vec![0.0; rows.len() * n];
    let output = OutputRegion::whole(rows.len(), n);
    let product = Product { terms: &terms, epilogue: Epilogue::default(), output };
    gemm(cpu, compute, &[product], ViewMut::F32(&mut out));
    out
}
