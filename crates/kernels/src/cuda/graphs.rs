//! Passes as CUDA graphs: the calls of a pass are collected until a result is needed, and when the
//! same calls occur for the third time, they are captured and from then on launched as one graph.
//! Launching thousands of kernels one by one takes the host longer than a small model's kernels
//! run.
//!
//! Calls are the same if they differ only in their inputs, the data that the host passes to the
//! device. So anything that changes from step to step (tokens, starts of sequences, keys of random
//! numbers) must be an input and not a kernel argument.

use super::Arg;
use super::driver::{Address, Calls, Driver, Graph, HostAddress, Info, Launch, Matmul, NoGraph};
use super::source::Source;
use crate::{DeviceError, Failures, lock};
use std::sync::{Arc, Mutex, MutexGuard};

/// Minimum calls of a graph: fewer are not worth one.
const MIN_CALLS: usize = 8;

/// The occurrence of the same calls at which they are captured as a graph: earlier ones load
/// kernels and allocate memory.
const CAPTURED_AT: u64 = 3;

/// Maximum sequences of calls that are remembered: a forward and a backward pass for each of half
/// as many micro-batch shapes.
const MAX_KNOWN: usize = 32;

/// After this many unknown sequences in a row, graphs are disabled.
const MAX_MISSES: usize = 2 * MAX_KNOWN;

/// Minimum replays per graph, on average, or graphs are disabled: capturing one takes as long as a
/// few passes.
const MIN_REPLAYS: u64 = 8;

/// Calls that were collected before.
struct Known {
    /// The calls, without inputs.
    calls: Calls,
    /// Bytes of inputs.
    input_bytes: usize,
    graph: Option<Box<dyn Graph>>,
    /// How often they were issued.
    times: u64,
    /// When they were last issued.
    last: u64,
}

impl Known {
    /// Whether the calls differ only in the contents of their inputs.
    fn matches(&self, calls: &Calls) -> bool {
        self.input_bytes == calls.inputs().len() && self.calls.are_same(calls)
    }
}

#[derive(Default)]
struct State {
    is_collecting: bool,
    /// Whether graphs are unavailable or not worthwhile.
    is_disabled: bool,
    calls: Calls,
    known: Vec<Known>,
    /// Unknown sequences in a row.
    misses: usize,
    time: u64,
    graphs: u64,
    replays: u64,
    /// Why graphs were given up, until it is reported.
    error: Option<String>,
}

/// The driver as operations see it: collects calls during a pass, and after a failure executes
/// none.
pub(super) struct Graphs {
    // Graphs are released before the driver that made them.
    state: Mutex<State>,
    failures: Arc<Failures>,
    driver: Box<dyn Driver>,
}

impl Graphs {
    pub(super) fn of(driver: Box<dyn Driver>) -> Self {
        let (state, failures) = Default::default();
        Self { state, failures, driver }
    }

    /// Failures of the driver.
    pub(super) fn failures(&self) -> &Arc<Failures> {
        &self.failures
    }

    /// Begins to collect calls.
    pub(super) fn begin(&self) {
        let mut state = self.state();
        state.is_collecting = !state.is_disabled;
    }

    /// Issues the collected calls and stops collecting; on panic, drops them.
    pub(super) fn end(&self) {
        let mut state = self.state();
        state.is_collecting = false;
        if std::thread::panicking() {
            // If the driver itself panicked, calls that were being issued are lost, too.
            state.calls = Calls::default();
            self.failures.count_dropped();
        }
        self.flush(&mut state);
    }

    /// Captures no graphs from now on.
    pub(super) fn disable(&self) {
        let mut state = self.state();
        self.flush(&mut state);
        state.disable();
    }

    /// Why graphs were given up; reported once.
    pub(super) fn take_error(&self) -> Option<String> {
        self.state().error.take()
    }

    /// How often a graph was launched.
    pub(super) fn num_replays(&self) -> u64 {
        self.state().replays
    }

    /// Forgets all calls and releases their graphs. Graphs stay disabled if they were, and those
    /// made and replayed so far still count.
    pub(super) fn clear(&self) {
        let mut state = self.state();
        (state.known, state.misses) = Default::default();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic in a driver leaves calls that `end` drops.
        lock(&self.state)
    }

    /// Calls the driver, unless an earlier call failed.
    fn attempt(&self, call: impl FnOnce(&dyn Driver) -> Result<(), DeviceError>) {
        if !self.failures.is_failing() {
            self.call(call);
        }
    }

    /// Calls the driver even if an earlier call failed.
    fn call(&self, call: impl FnOnce(&dyn Driver) -> Result<(), DeviceError>) {
        if let Err(error) = call(&*self.driver) {
            self.failures.note(error);
        }
    }

    /// Collects a call by `push`; returns false outside of a pass.
    fn collect(&self, push: impl FnOnce(&mut Calls)) -> bool {
        let mut state = self.state();
        if state.is_collecting {
            push(&mut state.calls);
        }
        state.is_collecting
    }

    /// Issues the calls collected so far.
    pub(super) fn catch_up(&self) {
        self.flush(&mut self.state());
    }

    fn flush(&self, state: &mut State) {
        let calls = std::mem::take(&mut state.calls);
        // SAFETY: callers promised that each call is sound, and memory is not freed before the
        // collected calls are issued.
        self.attempt(|driver| unsafe { state.issue(driver, calls) });
    }
}

impl State {
    /// Issues calls, as a graph if they are known.
    ///
    /// # Safety
    /// Each call must be sound now.
    unsafe fn issue(&mut self, driver: &dyn Driver, calls: Calls) -> Result<(), DeviceError> {
        // SAFETY: as promised.
        let one_by_one = |calls: &Calls| unsafe { calls.issue_with(driver, calls.inputs()) };
        if calls.len() < MIN_CALLS {
            return one_by_one(&calls);
        }
        self.time += 1;
        let Some(i) = self.known.iter().position(|known| known.matches(&calls)) else {
            one_by_one(&calls)?;
            self.remember(calls);
            return Ok(());
        };
        self.misses = 0;
        let known = &mut self.known[i];
        (known.times, known.last) = (known.times + 1, self.time);
        if known.graph.is_none() && known.times >= CAPTURED_AT {
            // SAFETY: a graph is launched in place of the very calls that it was captured from.
            match unsafe { driver.graph(&calls) } {
                Ok(graph) => (known.graph, self.graphs) = (Some(graph), self.graphs + 1),
                Err(NoGraph::Failed(error)) if error.is_lost() => return Err(error),
                Err(error) => {
                    one_by_one(&calls)?;
                    self.error = Some(error.to_string());
                    self.disable();
                    return Ok(());
                }
            }
        }
        match &mut known.graph {
            Some(graph) => {
                // SAFETY: as promised.
                unsafe { graph.launch(driver, calls.inputs()) }?;
                self.replays += 1;
            }
            None => one_by_one(&calls)?,
        }
        if self.graphs >= 2 * MAX_KNOWN as u64 && self.replays < MIN_REPLAYS * self.graphs {
            self.disable();
        }
        Ok(())
    }

    fn disable(&mut self) {
        (self.is_disabled, self.is_collecting) = (true, false);
        self.known.clear();
    }

    /// Remembers calls, replacing the least recently used ones if necessary.
    fn remember(&mut self, mut calls: Calls) {
        self.misses += 1;
        if self.misses >= MAX_MISSES {
            return self.disable();
        }
        let input_bytes = calls.take_inputs().len();
        let known = Known { calls, input_bytes, graph: None, times: 1, last: self.time };
        if self.known.len() < MAX_KNOWN {
            self.known.push(known);
        } else if let Some(oldest) = self.known.iter_mut().min_by_key(|known| known.last) {
            *oldest = known;
        }
    }
}

/// The methods of [`Driver`], with the same contracts.
impl Graphs {
    pub(super) fn info(&self) -> &Info {
        self.driver.info()
    }

    pub(super) fn free_bytes(&self) -> u64 {
        self.driver.free_bytes()
    }

    /// # Errors
    /// Also after an earlier failure.
    pub(super) fn alloc(&self, bytes: usize) -> Result<Address, DeviceError> {
        self.try_alloc(|driver| driver.alloc(bytes))
    }

    /// Allocates memory. The error is returned, and noted only if the device is lost.
    fn try_alloc<T>(
        &self,
        alloc: impl FnOnce(&dyn Driver) -> Result<T, DeviceError>,
    ) -> Result<T, DeviceError> {
        if let Some(error) = self.failures.first() {
            return Err(error);
        }
        alloc(&*self.driver).inspect_err(|error| {
            if error.is_lost() {
                self.failures.note(error.clone());
            }
        })
    }

    /// # Safety
    /// See [`Driver::free`].
    pub(super) unsafe fn free(&self, address: Address) {
        self.catch_up();
        // SAFETY: as promised.
        self.call(|driver| unsafe { driver.free(address) });
    }

    /// # Safety
    /// See [`Driver::write`].
    pub(super) unsafe fn write(&self, address: Address, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        if !self.collect(|calls| calls.write(address, bytes)) {
            // SAFETY: as promised.
            self.attempt(|driver| unsafe { driver.write(address, bytes) });
        }
    }

    /// Reads zeros after a failure.
    ///
    /// # Safety
    /// See [`Driver::read`].
    pub(super) unsafe fn read(&self, address: Address, bytes: &mut [u8]) {
        self.catch_up();
        // SAFETY: as promised.
        self.attempt(|driver| unsafe { driver.read(address, bytes) });
        if self.failures.is_failing() {
            bytes.fill(0);
        }
    }

    /// # Safety
    /// See [`Driver::fill`].
    pub(super) unsafe fn fill(&self, address: Address, byte: u8, bytes: usize) {
        if !self.collect(|calls| calls.fill(address, byte, bytes)) {
            // SAFETY: as promised.
            self.attempt(|driver| unsafe { driver.fill(address, byte, bytes) });
        }
    }

    /// # Safety
    /// See [`Driver::launch`].
    pub(super) unsafe fn launch(
        &self,
        source: &'static Source,
        kernel: usize,
        at: Launch,
        args: &[Arg],
    ) {
        if !self.collect(|calls| calls.launch(source, kernel, at, args)) {
            // SAFETY: as promised.
            self.attempt(|driver| unsafe { driver.launch(source, kernel, at, args) });
        }
    }

    /// # Safety
    /// See [`Driver::matmul`].
    pub(super) unsafe fn matmul(&self, matmul: &Matmul) {
        if !self.collect(|calls| calls.matmul(matmul)) {
            // SAFETY: as promised.
            self.attempt(|driver| unsafe { driver.matmul(matmul) });
        }
    }

    /// # Errors
    /// Also after a call that failed.
    pub(super) fn alloc_host(&self, bytes: usize) -> Result<HostAddress, DeviceError> {
        self.try_alloc(|driver| driver.alloc_host(bytes))
    }

    /// # Safety
    /// See [`Driver::free_host`].
    pub(super) unsafe fn free_host(&self, address: HostAddress) {
        self.catch_up();
        // SAFETY: as promised.
        self.call(|driver| unsafe { driver.free_host(address) });
    }

    /// # Safety
    /// See [`Driver::prefetch`].
    pub(super) unsafe fn prefetch(&self, to: Address, from: HostAddress, bytes: usize) {
        // Prefetches split a pass into more pieces than are remembered.
        self.disable();
        // SAFETY: as promised.
        self.attempt(|driver| unsafe { driver.prefetch(to, from, bytes) });
    }

    pub(super) fn await_prefetches(&self) {
        self.catch_up();
        // Prefetches that began before a failure are still running.
        self.call(|driver| driver.await_prefetches());
    }

    pub(super) fn synchronize(&self) {
        self.catch_up();
        self.call(|driver| driver.synchronize());
    }
}

#[cfg(test)]
mod tests;
