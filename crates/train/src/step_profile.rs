//! Where the time of training steps goes, operation by operation.

use hone_tensor::{Span, Work};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What one kind of operation took, per step.
#[derive(Clone, Debug)]
pub struct OperationTime {
    /// Operation.
    pub name: &'static str,
    /// Calls.
    pub calls: f64,
    /// Seconds.
    pub seconds: f64,
    /// FLOP per second; `None` for operations that are bound by memory.
    pub flops_per_second: Option<f64>,
    /// Bytes per second.
    pub bytes_per_second: f64,
}

/// Some training steps, operation by operation.
#[derive(Clone, Debug)]
pub struct StepProfile {
    spans: Vec<Span>,
    /// Steps that were recorded.
    pub num_steps: usize,
}

impl StepProfile {
    /// The profile of so many steps.
    pub fn new(spans: Vec<Span>, num_steps: usize) -> Self {
        Self { spans, num_steps }
    }

    /// Operations, those that took longest first.
    pub fn operations(&self) -> Vec<OperationTime> {
        let mut sums: BTreeMap<&str, (usize, f64, Span)> = BTreeMap::new();
        for span in &self.spans {
            let sum = sums.entry(span.cost.name).or_insert((0, 0.0, *span));
            if sum.0 > 0 {
                sum.2.cost.flops += span.cost.flops;
                sum.2.cost.bytes += span.cost.bytes;
            }
            sum.0 += 1;
            sum.1 += span.seconds;
        }
        let n = self.num_steps as f64;
        let operation = |(calls, seconds, Span { cost, .. })| OperationTime {
            name: cost.name,
            calls: calls as f64 / n,
            seconds: seconds / n,
            flops_per_second: (cost.work != Work::Memory).then(|| cost.flops as f64 / seconds),
            bytes_per_second: cost.bytes as f64 / seconds,
        };
        let mut operations: Vec<_> = sums.into_values().map(operation).collect();
        operations.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        operations
    }

    /// The spans in Chrome's trace event format, which Perfetto opens.
    pub fn trace(&self) -> Value {
        let Some(begin) = self.spans.first().map(|span| span.start) else {
            return json!({ "traceEvents": [] });
        };
        let event = |span: &Span| {
            json!({
                "name": span.cost.name,
                "ph": "X",
                "ts": span.start.duration_since(begin).as_secs_f64() * 1e6,
                "dur": span.seconds * 1e6,
                "pid": 1,
                "tid": 1,
                "args": {
                    "gflop": span.cost.flops as f64 / 1e9,
                    "gflop_per_second": span.cost.flops as f64 / 1e9 / span.seconds,
                    "gb_per_second": span.cost.bytes as f64 / 1e9 / span.seconds,
                },
            })
        };
        let events: Vec<Value> = self.spans.iter().map(event).collect();
        json!({ "traceEvents": events, "displayTimeUnit": "ms" })
    }
}
