//! `hone demo`

use crate::args::DemoArgs;
use crate::failure::Failure;

/// Runs the demo.
pub fn run(_args: &DemoArgs) -> Result<(), Failure> {
    Err(Failure::Usage("not built yet".into()))
}
