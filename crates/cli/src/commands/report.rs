//! `hone report`

use crate::args::ReportArgs;
use crate::failure::Failure;
use crate::output;
use hone_train::checkpoint::write_file_whole;
use hone_train::{Code, TrainError, report};
use serde_json::json;

/// Writes `report.html` of a run.
pub fn run(args: &ReportArgs) -> Result<(), Failure> {
    if !args.run_dir.join("manifest.json").is_file() {
        return Err(Failure::Usage(format!(
            "{}: no run is here (manifest.json is missing); give a run's output.dir",
            args.run_dir.display()
        )));
    }
    let page = report::build(&args.run_dir)
        .map_err(|error| TrainError::Usage(Code::ReportFailed, error.to_string()))?;
    let path = args.run_dir.join("report.html");
    write_file_whole(&path, page.as_bytes())?;
    if args.json {
        output::json(&json!({ "report": path }));
    } else {
        output::line(&path.display().to_string());
    }
    Ok(())
}
