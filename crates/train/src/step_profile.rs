//! Where the time of training steps goes, operation by operation.

use crate::profile::DeviceProfile;
use hone_tensor::{Compute, Span};
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
    /// Seconds that the planner counts on.
    pub planned_seconds: f64,
    /// FLOP per second; `None` for operations that are bound by memory.
    pub flops_per_second: Option<f64>,
    /// Bytes per second.
    pub bytes_per_second: f64,
}

/// Some training steps, operation by operation.
#[derive(Clone, Debug)]
pub struct StepProfile<'a> {
    spans: Vec<Span>,
    /// Steps that were recorded.
    pub num_steps: usize,
    /// What plans are made with.
    device: &'a DeviceProfile,
    compute: Compute,
}

impl<'a> StepProfile<'a> {
    /// The profile of so many steps.
    pub fn new(
        spans: Vec<Span>,
        num_steps: usize,
        device: &'a DeviceProfile,
        compute: Compute,
    ) -> Self {
        Self { spans, num_steps, device, compute }
    }

    /// Operations, those that took longest first.
    pub fn operations(&self) -> Vec<OperationTime> {
        let mut by_name: BTreeMap<&str, Vec<&Span>> = BTreeMap::new();
        for span in &self.spans {
            by_name.entry(span.cost.name).or_default().push(span);
        }
        let n = self.num_steps as f64;
        let operation = |(name, spans): (&'static str, Vec<&Span>)| {
            let sum = |of: &dyn Fn(&Span) -> f64| spans.iter().map(|span| of(span)).sum::<f64>();
            let seconds = sum(&|span| span.seconds);
            let flops = sum(&|span| span.cost.flops() as f64);
            OperationTime {
                name,
                calls: spans.len() as f64 / n,
                seconds: seconds / n,
                planned_seconds: sum(&|span| self.device.seconds_of(&span.cost, self.compute)) / n,
                flops_per_second: (flops > 0.0).then_some(flops / seconds),
                bytes_per_second: sum(&|span| span.cost.bytes as f64) / seconds,
            }
        };
        let mut operations: Vec<_> = by_name.into_iter().map(operation).collect();
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
                    "gflop": span.cost.flops() as f64 / 1e9,
                    "gflop_per_second": span.cost.flops() as f64 / 1e9 / span.seconds,
                    "gb_per_second": span.cost.bytes as f64 / 1e9 / span.seconds,
                },
            })
        };
        let events: Vec<Value> = self.spans.iter().map(event).collect();
        json!({ "traceEvents": events, "displayTimeUnit": "ms" })
    }
}
