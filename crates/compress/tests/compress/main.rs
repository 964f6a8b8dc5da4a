//! Calibration on a small trained model, against PyTorch and against what is measured.

mod calibration;
mod families;
mod plan;
mod rounding;
