//! Attention by cuDNN, where users have it.
//!
//! A plan is made once for each kind of attention; sequences are counted and measured in steps, so
//! that a training run needs few. What cuDNN cannot do, or is known to do wrong, is left to our own
//! kernels.

mod attention;
mod graph;
mod library;
#[cfg(test)]
mod tests;

use super::super::driver::{AttentionArrays, AttentionPlan, AttentionShape, LseLayout, Pass};
use attention::{Key, Scalars, graph, pointers};
use cudarc::driver::sys::CUstream;
use graph::{Device, Handle, Plan};
use library::{Library, Version};

/// Plans that are kept: the code of each takes some hundred kilobytes of the device's memory.
const MOST_PLANS: usize = 64;
/// The fewest sequences, and tokens, that a plan has room for.
const FEWEST_SEQUENCES: usize = 8;
const SHORTEST: usize = 128;
/// The first that is right about empty sequences.
const WITH_EMPTY_SEQUENCES: Version = Version(92500);
/// The first that is right about packed sequences on Ampere, Ada and small Blackwells.
const BEYOND_HOPPER: Version = Version(91801);

pub(super) struct Cudnn {
    library: &'static Library,
    device: Device,
    capability: (u32, u32),
    /// Those used last stand last; with the reason where there is none.
    plans: Vec<(Key, Result<Plan, String>)>,
}

impl Cudnn {
    /// On the current device, whose work is ordered on `stream`.
    pub(super) fn new(capability: (u32, u32), stream: CUstream) -> Result<Self, String> {
        let library = Library::get()?;
        lse_layout(capability, library.version)?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes the handle, which lives as long as the process, like the context.
        library.check("starting cuDNN", unsafe { (library.create)(&mut handle) })?;
        // SAFETY: made just now.
        let status = unsafe { (library.set_stream)(handle, stream.cast()) };
        library.check("giving cuDNN a stream", status)?;
        Ok(Self::of(library, Device::Handle(Handle(handle)), capability))
    }

    fn of(library: &'static Library, device: Device, capability: (u32, u32)) -> Self {
        Self { library, device, capability, plans: Vec::new() }
    }

    /// A name and a version.
    pub(super) fn name(&self) -> String {
        let failed = self.plans.iter().find_map(|(_, plan)| plan.as_ref().err());
        let except = failed.map(|reason| format!(", not for every shape: {reason}"));
        format!("cuDNN {}{}", self.library.version, except.unwrap_or_default())
    }

    /// What serves such an attention; `synchronize` waits for what runs on the device.
    pub(super) fn plan(
        &mut self,
        shape: &AttentionShape,
        synchronize: impl FnOnce(),
    ) -> Option<AttentionPlan> {
        let key = self.key(shape)?;
        self.find(&key).unwrap_or_else(|| {
            if self.plans.len() == MOST_PLANS {
                synchronize();
                drop(self.plans.remove(0));
            }
            let plan = graph(self.library, &key).and_then(|graph| graph.plan(&self.device));
            self.plans.push((key, plan));
        });
        let workspace_bytes = self.plans.last()?.1.as_ref().ok()?.workspace_bytes;
        let AttentionShape { num_sequences, longest, .. } = key.shape;
        Some(AttentionPlan { num_sequences, longest, lse: key.lse, workspace_bytes })
    }

    /// Asks for an attention that [`Self::plan`] serves.
    pub(super) fn run(&mut self, shape: &AttentionShape, arrays: &AttentionArrays) {
        let key = self.key(shape).filter(|key| self.find(key).is_some());
        let (Some((key, Ok(plan))), true, Device::Handle(handle)) =
            (self.plans.last(), key.is_some(), &self.device)
        else {
            panic!("there is no plan for {shape:?}")
        };
        let scalars = Scalars::of(arrays);
        plan.run(*handle, &pointers(key, arrays, &scalars), arrays.workspace)
            .unwrap_or_else(|error| panic!("cuDNN failed at {shape:?}: {error}"));
    }

    /// Puts the plan for `key` last, where there is one or a reason for none.
    fn find(&mut self, key: &Key) -> Option<()> {
        let at = self.plans.iter().rposition(|(of, _)| of == key)?;
        self.plans[at..].rotate_left(1);
        Some(())
    }

    /// What the plan for a shape is made for; `None` where cuDNN is not to be asked.
    fn key(&self, shape: &AttentionShape) -> Option<Key> {
        let Version(version) = self.library.version;
        let lse = lse_layout(self.capability, self.library.version).ok()?;
        let (most_dims, multiple) = match (shape.pass, lse) {
            (Pass::Forward, _) => (256, 8),
            (Pass::Backward, LseLayout::Tokens) => (128, 16),
            (Pass::Backward, LseLayout::Padded) => (128, 8),
        };
        if shape.head_dim > most_dims || !shape.head_dim.is_multiple_of(multiple) {
            return None;
        }
        // The padded backward pass takes memory for every sequence.
        let is_exact = version < WITH_EMPTY_SEQUENCES.0
            || (shape.pass, lse) == (Pass::Backward, LseLayout::Padded);
        let num_sequences = match is_exact {
            true => shape.num_sequences,
            false => shape.num_sequences.next_power_of_two().max(FEWEST_SEQUENCES),
        };
        let longest = shape.longest.next_power_of_two().max(SHORTEST);
        Some(Key { shape: AttentionShape { num_sequences, longest, ..*shape }, lse })
    }
}

/// How cuDNN has log-sum-exps on a GPU, or why it is not to be asked.
fn lse_layout((major, minor): (u32, u32), version: Version) -> Result<LseLayout, String> {
    match major {
        9 | 10 => Ok(LseLayout::Tokens),
        8 | 12 if version >= BEYOND_HOPPER => Ok(LseLayout::Padded),
        8 | 12 => Err(format!("cuDNN {version} is older than 9.18.1, which this GPU needs")),
        _ => Err(format!("cuDNN is not used on GPUs of compute capability {major}.{minor}")),
    }
}
