//! Converts results of the driver and of cuBLASLt to errors.

use super::libraries::find_driver;
use crate::DeviceError;
use cudarc::cublaslt::result::CublasError;
use cudarc::cublaslt::sys::cublasStatus_t;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::CUresult;

/// Consequence of a failed call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    /// Memory ran out; later calls may succeed.
    OutOfMemory,
    /// "The process is left in an inconsistent state and any further CUDA work will return the
    /// same error" (CUDA Driver API, on CUresult).
    Lost,
    /// Only this call failed.
    Refused,
}

impl Meaning {
    fn of(result: CUresult) -> Self {
        use CUresult::*;
        match result {
            CUDA_ERROR_OUT_OF_MEMORY => Self::OutOfMemory,
            CUDA_ERROR_ILLEGAL_ADDRESS
            | CUDA_ERROR_LAUNCH_TIMEOUT
            | CUDA_ERROR_ASSERT
            | CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUDA_ERROR_MISALIGNED_ADDRESS
            | CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUDA_ERROR_INVALID_PC
            | CUDA_ERROR_LAUNCH_FAILED
            | CUDA_ERROR_TENSOR_MEMORY_LEAK
            | CUDA_ERROR_CONTAINED
            | CUDA_ERROR_ECC_UNCORRECTABLE
            | CUDA_ERROR_NVLINK_UNCORRECTABLE
            | CUDA_ERROR_MPS_CLIENT_TERMINATED
            | CUDA_ERROR_CONTEXT_IS_DESTROYED
            | CUDA_ERROR_DEINITIALIZED
            | CUDA_ERROR_EXTERNAL_DEVICE
            | CUDA_ERROR_UNKNOWN => Self::Lost,
            _ => Self::Refused,
        }
    }

    /// cuBLASLt's status does not tell whether the GPU is lost; the driver's result `after` it
    /// does.
    fn of_product(status: cublasStatus_t, after: CUresult) -> Self {
        match (Self::of(after), status) {
            (Self::Lost, _) => Self::Lost,
            (_, cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED) => Self::OutOfMemory,
            _ => Self::Refused,
        }
    }

    fn error(self, doing: &str, message: impl FnOnce() -> String) -> DeviceError {
        let doing = doing.to_owned();
        match self {
            Self::OutOfMemory => DeviceError::out_of_gpu_memory_while(doing),
            Self::Lost | Self::Refused => {
                let is_lost = self == Self::Lost;
                DeviceError::Driver { doing, message: message(), is_lost }
            }
        }
    }
}

/// Checks the result of a driver call.
pub(super) fn check<T>(doing: &str, result: Result<T, DriverError>) -> Result<T, DeviceError> {
    result.map_err(|error| Meaning::of(error.0).error(doing, || words(error)))
}

/// Checks the result of an allocation; `refused` is the error if memory runs out.
pub(super) fn check_alloc<T>(
    doing: &str,
    result: Result<T, DriverError>,
    refused: impl FnOnce() -> DeviceError,
) -> Result<T, DeviceError> {
    match result {
        Err(DriverError(result)) if Meaning::of(result) == Meaning::OutOfMemory => Err(refused()),
        result => check(doing, result),
    }
}

/// Checks the result of loading the kernels of a source.
pub(super) fn check_load<T>(
    kernels: &'static str,
    doing: &str,
    result: Result<T, DriverError>,
) -> Result<T, DeviceError> {
    result.map_err(|error| match Meaning::of(error.0) {
        Meaning::Refused => {
            DeviceError::Compile { kernels, message: format!("{doing}: {}", words(error)) }
        }
        meaning => meaning.error(&format!("{doing} of `{kernels}`"), || words(error)),
    })
}

/// The driver's words for an error; its name where there is no driver to ask, as in tests.
fn words(error: DriverError) -> String {
    match find_driver() {
        Ok(()) => error.to_string(),
        Err(_) => format!("{:?}", error.0),
    }
}

/// The error of a failed product, with `what` in its message. The GPU's context must be current.
pub(super) fn refused_product(what: &str, error: CublasError) -> DeviceError {
    // Any harmless call would do: after such an error all of them return it.
    let after = result::mem_get_info().err().map_or(CUresult::CUDA_SUCCESS, |error| error.0);
    Meaning::of_product(error.0, after).error("multiplying", || format!("{what}: {error}"))
}

/// The error of cuBLASLt while it starts.
pub(super) fn refused_start(doing: &str, error: CublasError) -> DeviceError {
    let meaning = Meaning::of_product(error.0, CUresult::CUDA_SUCCESS);
    meaning.error(doing, || error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_the_driver_say_whether_it_can_go_on() {
        use CUresult::*;
        for (result, expected) in [
            (CUDA_ERROR_OUT_OF_MEMORY, Meaning::OutOfMemory),
            (CUDA_ERROR_ILLEGAL_ADDRESS, Meaning::Lost),
            (CUDA_ERROR_ECC_UNCORRECTABLE, Meaning::Lost),
            (CUDA_ERROR_LAUNCH_FAILED, Meaning::Lost),
            (CUDA_ERROR_CONTAINED, Meaning::Lost),
            (CUDA_ERROR_UNKNOWN, Meaning::Lost),
            (CUDA_ERROR_INVALID_VALUE, Meaning::Refused),
            (CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, Meaning::Refused),
            (CUDA_ERROR_NO_BINARY_FOR_GPU, Meaning::Refused),
            (CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, Meaning::Refused),
        ] {
            assert_eq!(Meaning::of(result), expected, "{result:?}");
            let error = expected.error("launching a graph", || "in its words".to_owned());
            assert_eq!(error.is_out_of_memory(), expected == Meaning::OutOfMemory);
            assert_eq!(error.is_lost(), expected == Meaning::Lost);
            assert!(error.to_string().contains("while launching a graph"), "{error}");
        }
    }

    #[test]
    fn a_product_that_fails_may_have_lost_the_gpu() {
        use CUresult::{CUDA_ERROR_ILLEGAL_ADDRESS as LOST, CUDA_SUCCESS as FINE};
        use cublasStatus_t::*;
        for (status, after, expected) in [
            (CUBLAS_STATUS_ALLOC_FAILED, FINE, Meaning::OutOfMemory),
            (CUBLAS_STATUS_ALLOC_FAILED, LOST, Meaning::Lost),
            (CUBLAS_STATUS_EXECUTION_FAILED, FINE, Meaning::Refused),
            (CUBLAS_STATUS_EXECUTION_FAILED, LOST, Meaning::Lost),
            (CUBLAS_STATUS_NOT_SUPPORTED, FINE, Meaning::Refused),
        ] {
            assert_eq!(Meaning::of_product(status, after), expected, "{status:?}, {after:?}");
        }
    }

    fn failed(result: CUresult) -> Result<(), DriverError> {
        Err(DriverError(result))
    }

    #[test]
    fn only_an_allocation_without_memory_is_refused() {
        use CUresult::*;
        let refused = || DeviceError::out_of_page_locked_memory(7);
        let check = |result| check_alloc("allocating", result, refused);
        assert_eq!(check(Ok(())), Ok(()));
        assert_eq!(check(failed(CUDA_ERROR_OUT_OF_MEMORY)), Err(refused()));
        for (result, is_lost) in
            [(CUDA_ERROR_ILLEGAL_ADDRESS, true), (CUDA_ERROR_INVALID_VALUE, false)]
        {
            let error = check(failed(result)).expect_err("it failed");
            assert!(!error.is_out_of_memory() && error.is_lost() == is_lost, "{error}");
        }
    }

    #[test]
    fn kernels_that_cannot_be_loaded_are_named() {
        use CUresult::*;
        let check = |result| check_load("adamw", "loading the kernels", failed(result));
        let error = check(CUDA_ERROR_NO_BINARY_FOR_GPU).expect_err("it failed");
        assert!(matches!(error, DeviceError::Compile { kernels: "adamw", .. }), "{error}");
        for (result, is_lost) in
            [(CUDA_ERROR_OUT_OF_MEMORY, false), (CUDA_ERROR_ILLEGAL_ADDRESS, true)]
        {
            let error = check(result).expect_err("it failed");
            assert_eq!((error.is_out_of_memory(), error.is_lost()), (!is_lost, is_lost), "{error}");
            assert!(error.to_string().contains("while loading the kernels of `adamw`"), "{error}");
        }
    }

    #[test]
    fn memory_that_runs_out_while_a_device_opens_is_told_from_refusals() {
        use super::super::{CudaError, check_open};
        use CUresult::*;
        let error = check_open("opening the device", failed(CUDA_ERROR_OUT_OF_MEMORY));
        let error = error.expect_err("it failed");
        assert!(matches!(&error, CudaError::Device(error) if error.is_out_of_memory()), "{error}");
        let error = check_open("opening the device", failed(CUDA_ERROR_INVALID_DEVICE));
        let error = error.expect_err("it failed");
        assert!(matches!(error, CudaError::Driver { doing: "opening the device", .. }), "{error}");
    }
}
