//! How much of a step goes into what is neither product nor attention.

use super::super::Place;
use super::remove_run;
use serde_json::Value;
use std::process::Command;

/// Steps of a profiled run: one that warms up, and three that are recorded.
const NUM_STEPS: u64 = 4;

/// Of operations whose time is that of products or attention, what their names begin with, after
/// the `d_` of those that go backward.
const PRODUCTS: [&str; 6] = ["linear", "lora", "weight", "log_probs", "experts", "attention"];

/// What is neither product nor attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rest {
    /// Of a step's time.
    pub share: f64,
}

/// Trains with `hone train --profile`, and reads the trace that it leaves.
pub fn measure(place: &Place, train: &mut Command) -> Result<Rest, String> {
    let out = remove_run(place)?;
    let output = train.arg(format!("train.max_steps={NUM_STEPS}")).arg("--profile").output();
    let output = output.map_err(|error| format!("{train:?}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{train:?}:\n{}", String::from_utf8_lossy(&output.stderr)));
    }
    let trace = std::fs::read(out.join("profile.json")).map_err(|error| error.to_string())?;
    let trace = serde_json::from_slice(&trace).map_err(|error| error.to_string())?;
    rest_of(&trace).ok_or_else(|| "profile.json tells of no operations".to_owned())
}

/// Spans follow one another without gaps, so that they are all of the time.
fn rest_of(trace: &Value) -> Option<Rest> {
    let spans = trace["traceEvents"].as_array()?.iter();
    let spans = spans.map(|span| Some((span["name"].as_str()?, span["dur"].as_f64()?)));
    let spans = spans.collect::<Option<Vec<_>>>()?;
    let all: f64 = spans.iter().map(|(_, time)| time).sum();
    let rest = spans.iter().filter(|(name, _)| !is_product(name)).map(|(_, time)| time);
    (all > 0.0).then(|| Rest { share: rest.sum::<f64>() / all })
}

fn is_product(name: &str) -> bool {
    let name = name.strip_prefix("d_").unwrap_or(name);
    PRODUCTS.iter().any(|product| name.starts_with(product))
}

#[cfg(test)]
mod tests {
    use super::{Rest, rest_of};
    use serde_json::json;

    #[test]
    fn what_is_no_product_counts() {
        let span = |(name, time): (&str, f64)| json!({ "name": name, "dur": time });
        let trace = |spans: &[(&str, f64)]| {
            let spans: Vec<_> = spans.iter().copied().map(span).collect();
            json!({ "traceEvents": spans })
        };
        let spans = [
            ("linear", 3.0),
            ("d_lora_b", 1.0),
            ("d_attention", 2.0),
            ("d_rms_norm", 1.5),
            ("between_steps", 0.5),
        ];
        assert_eq!(rest_of(&trace(&spans)), Some(Rest { share: 0.25 }));
        assert_eq!(rest_of(&trace(&[])), None);
    }
}
