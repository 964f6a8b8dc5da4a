//! `hone report`

mod files;

use super::{check_parent, is_same_file};
use crate::args::ReportArgs;
use crate::failure::Failure;
use crate::output;
use hone_train::checkpoint::write_file_whole;
use hone_train::{Code, TrainError, report};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Writes the page of a run, or of models compared.
pub fn run(args: &ReportArgs) -> Result<(), Failure> {
    if let Some(out) = &args.out {
        check_parent("--out", out)?;
    }
    let (page, path) = match &args.input[..] {
        [run_dir] if !run_dir.is_file() => of_run(run_dir, args)?,
        files => of_files(files, args)?,
    };
    write_file_whole(&path, page.as_bytes())?;
    if args.json {
        output::json(&json!({ "report": path }));
    } else {
        output::line(&path.display().to_string());
    }
    Ok(())
}

fn of_run(run_dir: &Path, args: &ReportArgs) -> Result<(String, PathBuf), Failure> {
    if !run_dir.join("manifest.json").is_file() {
        return Err(Failure::Usage(format!(
            "{}: no run is here (manifest.json is missing); give a run's output.dir",
            run_dir.display()
        )));
    }
    let page = report::build(run_dir)
        .map_err(|error| TrainError::Usage(Code::ReportFailed, error.to_string()))?;
    Ok((page, args.out.clone().unwrap_or_else(|| run_dir.join("report.html"))))
}

fn of_files(files: &[PathBuf], args: &ReportArgs) -> Result<(String, PathBuf), Failure> {
    if let Some(dir) = files.iter().find(|file| file.is_dir()) {
        return Err(Failure::Usage(format!(
            "{}: is a directory; give the directory of one run alone, or files of JSON",
            dir.display()
        )));
    }
    let Some(out) = &args.out else {
        return Err(Failure::Usage(
            "--out is missing: name the page to write of these files, such as --out models.html"
                .to_owned(),
        ));
    };
    if files.iter().any(|file| is_same_file(file, out)) {
        return Err(Failure::Usage(format!(
            "--out {} is one of the files to read; choose another",
            out.display()
        )));
    }
    Ok((report::comparison::build(&files::read(files)?), out.clone()))
}
