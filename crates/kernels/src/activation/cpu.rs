//! CPU kernels, vectorised along chunks.

use super::Activation;
use crate::cpu::{Cpu, Kernel};
use crate::element::Element;
use crate::math::{exp, sigmoid};
use crate::vector::by_chunk;
use crate::view::{View, ViewMut};

/// An activation `x · share(x)`.
pub(crate) trait Curve: Sync {
    /// The share of `x` that passes.
    fn share(x: f32) -> f32;
    /// `d` times the derivative at `x`, whose share is given.
    fn back(d: f32, x: f32, share: f32) -> f32;

    /// The other factor of a gated product.
    #[inline(always)]
    fn factor(x: f32) -> f32 {
        x
    }

    /// `d` times the derivative of the factor at `x`.
    #[inline(always)]
    fn factor_back(d: f32, _: f32) -> f32 {
        d
    }
}

pub(crate) struct Silu;

impl Curve for Silu {
    #[inline(always)]
    fn share(x: f32) -> f32 {
        sigmoid(x)
    }

    #[inline(always)]
    fn back(d: f32, x: f32, share: f32) -> f32 {
        d * share * (1.0 + x * (1.0 - share))
    }
}

pub(crate) struct Gelu;

impl Gelu {
    /// `√(1/2)`.
    const SCALE: f32 = std::f32::consts::FRAC_1_SQRT_2;
    /// `√(1/(2π))`.
    const DENSITY: f32 = 0.398_942_3;
}

impl Curve for Gelu {
    /// Abramowitz & Stegun, 7.1.26, within 8e-8: what it approximates is the tail, so that nothing
    /// cancels below zero.
    #[inline(always)]
    fn share(x: f32) -> f32 {
        let t = 1.0 / (1.0 + 0.327_591_1 * Self::SCALE * x.abs());
        let p = 1.061_405_4_f32.mul_add(t, -1.453_152);
        let p = p.mul_add(t, 1.421_413_7);
        let p = p.mul_add(t, -0.284_496_74);
        let p = p.mul_add(t, 0.254_829_6);
        let tail = 0.5 * (p * t * exp(-0.5 * x * x));
        if x < 0.0 { tail } else { 1.0 - tail }
    }

    #[inline(always)]
    fn back(d: f32, x: f32, share: f32) -> f32 {
        d * (share + Self::DENSITY * exp(-0.5 * x * x) * x)
    }
}

pub(crate) struct GeluTanh;

impl GeluTanh {
    /// `2 √(2/π)`: the share is a sigmoid of `2 u`.
    const LINEAR: f32 = 1.595_769;
    const CUBIC: f32 = Self::LINEAR * 0.044_715;
    /// Beyond this the sigmoid is 0 or 1; clamped, since the cube might overflow.
    const SATURATED: f32 = 16.0;
}

impl Curve for GeluTanh {
    #[inline(always)]
    fn share(x: f32) -> f32 {
        let x = x.clamp(-Self::SATURATED, Self::SATURATED);
        sigmoid(x * (Self::LINEAR + Self::CUBIC * x * x))
    }

    #[inline(always)]
    fn back(d: f32, x: f32, share: f32) -> f32 {
        let x = x.clamp(-Self::SATURATED, Self::SATURATED);
        let slope = x * (Self::LINEAR + 3.0 * Self::CUBIC * x * x);
        d * share * (1.0 + slope * (1.0 - share))
    }
}

pub(crate) struct ClampedSilu;

impl ClampedSilu {
    const SLOPE: f32 = 1.702;
    const LIMIT: f32 = 7.0;
}

impl Curve for ClampedSilu {
    #[inline(always)]
    fn share(x: f32) -> f32 {
        let clamped = x.min(Self::LIMIT);
        let share = sigmoid(Self::SLOPE * clamped);
        if x > Self::LIMIT { clamped * share / x } else { share }
    }

    #[inline(always)]
    fn back(d: f32, x: f32, share: f32) -> f32 {
        let slope = share * (1.0 + Self::SLOPE * x * (1.0 - share));
        if x > Self::LIMIT { 0.0 } else { d * slope }
    }

    #[inline(always)]
    fn factor(x: f32) -> f32 {
        x.clamp(-Self::LIMIT, Self::LIMIT) + 1.0
    }

    #[inline(always)]
    fn factor_back(d: f32, x: f32) -> f32 {
        if x.abs() > Self::LIMIT { 0.0 } else { d }
    }
}

/// Evaluates an expression with `$C` bound to the type of an activation.
macro_rules! with_curve {
    ($activation:expr, $C:ident => $body:expr) => {
        match $activation {
            $crate::activation::Activation::Silu => {
                type $C = $crate::activation::Silu;
                $body
            }
            $crate::activation::Activation::Gelu => {
                type $C = $crate::activation::Gelu;
                $body
            }
            $crate::activation::Activation::GeluTanh => {
                type $C = $crate::activation::GeluTanh;
                $body
            }
            $crate::activation::Activation::ClampedSilu => {
                type $C = $crate::activation::ClampedSilu;
                $body
            }
        }
    };
}
pub(crate) use with_curve;

/// See [`crate::Processor::activate`].
pub fn forward(cpu: &Cpu, activation: Activation, x: View<'_>, y: ViewMut<'_>) {
    with_curve!(activation, C => match (x, y) {
        (View::F32(x), ViewMut::F32(y)) => forward_typed::<_, C>(cpu, x, y),
        (View::Bf16(x), ViewMut::Bf16(y)) => forward_typed::<_, C>(cpu, x, y),
        _ => panic!("x and y have the same element type"),
    });
}

fn forward_typed<T: Element, C: Curve>(cpu: &Cpu, x: &[T], y: &mut [T]) {
    assert_eq!(x.len(), y.len());
    by_chunk(cpu, y, |start, y| cpu.isa.run(Forward { x: &x[start..], y, share: C::share }));
}

struct Forward<'a, T, S> {
    x: &'a [T],
    y: &'a mut [T],
    share: S,
}

impl<T: Element, S: Fn(f32) -> f32> Kernel for Forward<'_, T, S> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (y, x) in self.y.iter_mut().zip(self.x) {
            let x = x.to_f32();
            *y = T::from_f32(x * (self.share)(x));
        }
    }
}

/// See [`crate::Processor::activate_backward`].
pub fn backward(cpu: &Cpu, activation: Activation, x: View<'_>, d_y: View<'_>, d_x: ViewMut<'_>) {
    with_curve!(activation, C => match (x, d_y, d_x) {
        (View::F32(x), View::F32(d_y), ViewMut::F32(d_x)) => {
            backward_typed::<_, C>(cpu, x, d_y, d_x);
        }
        (View::Bf16(x), View::Bf16(d_y), ViewMut::Bf16(d_x)) => {
            backward_typed::<_, C>(cpu, x, d_y, d_x);
        }
        _ => panic!("x, d_y and d_x have the same element type"),
    });
}

fn backward_typed<T: Element, C: Curve>(cpu: &Cpu, x: &[T], d_y: &[T], d_x: &mut [T]) {
    assert!(x.len() == d_x.len() && d_y.len() == d_x.len());
    by_chunk(cpu, d_x, |start, d_x| {
        let (x, d_y) = (&x[start..], &d_y[start..]);
        cpu.isa.run(Backward { x, d_y, d_x, through: (C::share, C::back) });
    });
}

struct Backward<'a, T, F> {
    x: &'a [T],
    d_y: &'a [T],
    d_x: &'a mut [T],
    through: F,
}

impl<T, S, B> Kernel for Backward<'_, T, (S, B)>
where
    T: Element,
    S: Fn(f32) -> f32,
    B: Fn(f32, f32, f32) -> f32,
{
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { x, d_y, d_x, through: (share, back) } = self;
        for ((d_x, x), d_y) in d_x.iter_mut().zip(x).zip(d_y) {
            let x = x.to_f32();
            *d_x = T::from_f32(back(d_y.to_f32(), x, share(x)));
        }
    }
}
