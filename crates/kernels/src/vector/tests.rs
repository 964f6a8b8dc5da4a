use super::*;
use crate::cpu::Isa;
use crate::element::{bf16, f16};
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
        let first = sum_of_squares(&Cpu::with_isa(1, Isa::Scalar), &x);
        let exact: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        assert!((first - exact).abs() <= 1e-6 * exact, "{first} against {exact}");
        assert!(cpus().iter().all(|cpu| sum_of_squares(cpu, &x).to_bits() == first.to_bits()));
    }
    let mut x = random(CHUNK + 3, 4);
    x[CHUNK] = f32::NAN;
    assert!(sum_of_squares(&Cpu::new(2), &x).is_nan(), "a bad gradient must show");
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
    let (h, cpu) = (5, Cpu::new(2));
    let x = random(7 * h, 6);
    for rows in [vec![], vec![6], vec![3, 0, 6, 2]] {
        // Longer than needed: the rest is left alone.
        let mut gathered = vec![9.0; 4 * h];
        gather_rows(&cpu, View::F32(&x), h, &rows, ViewMut::F32(&mut gathered));
        let mut back = vec![0.0; 7 * h];
        scatter_rows(&gathered[..rows.len() * h], h, &rows, ViewMut::F32(&mut back));
        for row in 0..7 {
            let kept = rows.contains(&(row as u32));
            let expected = if kept { &x[row * h..][..h] } else { &[0.0; 5] };
            assert_eq!(&back[row * h..][..h], expected);
        }
        assert!(gathered[rows.len() * h..].iter().all(|&g| g == 9.0));
    }
}

#[test]
fn rows_are_copied_between_strides() {
    let x: Vec<f32> = (0..12).map(|i| i as f32).collect();
    let mut y = vec![-1.0; 8];
    // Two columns of each of three rows of four, behind the first row of `y`.
    copy_rows(View::F32(&x), (4, 1), ViewMut::F32(&mut y), (2, 2));
    assert_eq!(y, [-1.0, -1.0, 1.0, 2.0, 5.0, 6.0, 9.0, 10.0]);
}
