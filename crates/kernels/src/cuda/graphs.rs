//! Passes as CUDA graphs: what a pass asks of a GPU is collected until somebody wants a result, and
//! where the same calls were collected before, they are asked for again as one. Launching thousands
//! of kernels one by one takes the host longer than a small model's kernels run.
//!
//! Calls are the same if they differ in nothing but the numbers that they bring from outside, so
//! what changes from step to step, tokens, where sequences begin, random numbers' names, must come
//! in this way and not as a kernel's parameter.

use super::Arg;
use super::driver::{Address, Driver, HostAddress, Info, Launch, Matmul, Source};
use crate::{DeviceError, Failures, lock};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

/// Fewer calls than this are not worth a graph.
const FEW: usize = 8;

/// The time that calls become a graph.
const TIMES: u64 = 3;

/// Lists of calls that are remembered: a pass forward and one backward for each of half as many
/// shapes of micro-batches.
const MOST_KNOWN: usize = 32;

/// So many lists in a row that were not known, and none is looked for any more.
const MOST_MISSES: usize = 2 * MOST_KNOWN;

/// Nor where after so many graphs each was replayed less often than that: making one takes as long
/// as a few passes.
const LEAST_REPLAYS: u64 = 8;

/// One call whose result nobody waits for.
#[derive(Clone, Debug, PartialEq)]
enum Call {
    /// Of a part of the numbers from outside.
    Write {
        to: Address,
        part: Range<usize>,
    },
    Fill {
        address: Address,
        byte: u8,
        bytes: usize,
    },
    /// With a part of the parameters.
    Launch {
        source: &'static Source,
        kernel: usize,
        at: Launch,
        args: Range<usize>,
    },
    Matmul(Matmul),
}

/// Calls in their order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Calls {
    calls: Vec<Call>,
    args: Vec<Arg>,
    /// Numbers from outside, those of all calls.
    inputs: Vec<u8>,
}

impl Calls {
    /// Bytes of all numbers from outside.
    pub(super) fn num_inputs(&self) -> usize {
        self.inputs.len()
    }

    /// Asks for all of them; `write` copies a part of the numbers from outside.
    ///
    /// # Safety
    /// Each must be allowed now.
    pub(super) unsafe fn issue(
        &self,
        driver: &dyn Driver,
        write: &mut dyn FnMut(Address, Range<usize>) -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        for call in &self.calls {
            // SAFETY: as promised.
            unsafe {
                match call {
                    Call::Write { to, part } => write(*to, part.clone())?,
                    Call::Fill { address, byte, bytes } => driver.fill(*address, *byte, *bytes)?,
                    Call::Launch { source, kernel, at, args } => {
                        driver.launch(source, *kernel, *at, &self.args[args.clone()])?;
                    }
                    Call::Matmul(matmul) => driver.matmul(matmul)?,
                }
            }
        }
        Ok(())
    }

    /// The same with these numbers from outside.
    ///
    /// # Safety
    /// As [`Calls::issue`].
    pub(super) unsafe fn issue_with(
        &self,
        driver: &dyn Driver,
        inputs: &[u8],
    ) -> Result<(), DeviceError> {
        // SAFETY: as promised.
        unsafe { self.issue(driver, &mut |to, part| driver.write(to, &inputs[part])) }
    }
}

/// Calls that a driver made one of.
pub(crate) trait Graph: Send {
    /// Asks for all of them with these numbers from outside.
    ///
    /// # Safety
    /// Each must be allowed now.
    unsafe fn launch(&mut self, driver: &dyn Driver, inputs: &[u8]) -> Result<(), DeviceError>;
}

/// Calls that were collected before.
struct Known {
    /// Without numbers from outside.
    calls: Calls,
    /// How many bytes these are.
    num_inputs: usize,
    graph: Option<Box<dyn Graph>>,
    /// How often they were asked for.
    times: u64,
    /// When they were asked for last.
    last: u64,
}

impl Known {
    /// Whether they differ in numbers from outside at most.
    fn are(&self, calls: &Calls) -> bool {
        self.num_inputs == calls.inputs.len()
            && self.calls.args == calls.args
            && self.calls.calls == calls.calls
    }
}

#[derive(Default)]
struct State {
    is_collecting: bool,
    /// Whether graphs are out of the question, or not worth looking for.
    is_off: bool,
    calls: Calls,
    known: Vec<Known>,
    misses: usize,
    time: u64,
    graphs: u64,
    replays: u64,
    /// Why the driver made no graph, until somebody asks.
    refusal: Option<String>,
}

/// What operations ask a driver through: calls are collected while that is asked for, and after one
/// that failed none is passed on.
pub(super) struct Graphs {
    // Graphs are released before the driver that they came from.
    state: Mutex<State>,
    failures: Arc<Failures>,
    driver: Box<dyn Driver>,
}

impl Graphs {
    pub(super) fn of(driver: Box<dyn Driver>) -> Self {
        let (state, failures) = Default::default();
        Self { state, failures, driver }
    }

    /// What failed.
    pub(super) fn failures(&self) -> &Arc<Failures> {
        &self.failures
    }

    /// Collects from now on.
    pub(super) fn begin(&self) {
        let mut state = self.state();
        state.is_collecting = !state.is_off;
    }

    /// Asks for what is left and collects no more; after a panic what is left is dropped.
    pub(super) fn end(&self) {
        let mut state = self.state();
        state.is_collecting = false;
        if std::thread::panicking() {
            // With those that were being asked for, if it is the driver that panicked.
            state.calls = Calls::default();
            self.failures.count_dropped();
        }
        self.flush(&mut state);
    }

    /// Makes no graphs from now on.
    pub(super) fn turn_off(&self) {
        let mut state = self.state();
        self.flush(&mut state);
        state.turn_off();
    }

    /// Why the driver made no graph, once.
    pub(super) fn take_refusal(&self) -> Option<String> {
        self.state().refusal.take()
    }

    /// How often calls were replayed.
    pub(super) fn num_replays(&self) -> u64 {
        self.state().replays
    }

    /// Gives back what graphs hold; passes are looked for as if there had been none.
    pub(super) fn forget(&self) {
        let mut state = self.state();
        (state.known, state.misses) = Default::default();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic in a driver leaves calls that `end` drops.
        lock(&self.state)
    }

    /// Asks the driver, unless a call before failed.
    fn attempt(&self, ask: impl FnOnce(&dyn Driver) -> Result<(), DeviceError>) {
        if !self.failures.is_failing() {
            self.ask(ask);
        }
    }

    /// Asks the driver even if a call before failed.
    fn ask(&self, ask: impl FnOnce(&dyn Driver) -> Result<(), DeviceError>) {
        if let Err(error) = ask(&*self.driver) {
            self.failures.note(error);
        }
    }

    /// Collects a call, or says that it is not the time for it.
    fn collect(&self, call: impl FnOnce(&mut Calls) -> Call) -> bool {
        let mut state = self.state();
        if state.is_collecting {
            let call = call(&mut state.calls);
            state.calls.calls.push(call);
        }
        state.is_collecting
    }

    /// Asks for what was collected, before something that does not wait for it to be replayed.
    pub(super) fn catch_up(&self) {
        self.flush(&mut self.state());
    }

    fn flush(&self, state: &mut State) {
        let calls = std::mem::take(&mut state.calls);
        // SAFETY: who asked for the calls promised that each is allowed, and memory is not freed
        // before what was collected is asked for.
        self.attempt(|driver| unsafe { state.issue(driver, calls) });
    }
}

impl State {
    /// Asks for calls, as one where they were asked for before.
    ///
    /// # Safety
    /// Each must be allowed now.
    unsafe fn issue(&mut self, driver: &dyn Driver, calls: Calls) -> Result<(), DeviceError> {
        // SAFETY: as promised.
        let one_by_one = |calls: &Calls| unsafe { calls.issue_with(driver, &calls.inputs) };
        if calls.calls.len() < FEW {
            return one_by_one(&calls);
        }
        self.time += 1;
        let Some(i) = self.known.iter().position(|known| known.are(&calls)) else {
            one_by_one(&calls)?;
            self.remember(calls);
            return Ok(());
        };
        self.misses = 0;
        let known = &mut self.known[i];
        (known.times, known.last) = (known.times + 1, self.time);
        if known.graph.is_none() && known.times >= TIMES {
            // SAFETY: a graph is launched in place of the very calls that it was made of.
            match unsafe { driver.graph(&calls) } {
                Ok(graph) => (known.graph, self.graphs) = (Some(graph), self.graphs + 1),
                Err(error) if error.is_lost() => return Err(error),
                Err(error) => {
                    one_by_one(&calls)?;
                    self.refusal = Some(error.to_string());
                    self.turn_off();
                    return Ok(());
                }
            }
        }
        match &mut known.graph {
            Some(graph) => {
                // SAFETY: as promised.
                unsafe { graph.launch(driver, &calls.inputs) }?;
                self.replays += 1;
            }
            None => one_by_one(&calls)?,
        }
        if self.graphs >= 2 * MOST_KNOWN as u64 && self.replays < LEAST_REPLAYS * self.graphs {
            self.turn_off();
        }
        Ok(())
    }

    fn turn_off(&mut self) {
        (self.is_off, self.is_collecting) = (true, false);
        self.known.clear();
    }

    /// Remembers calls in place of those that were asked for least lately.
    fn remember(&mut self, mut calls: Calls) {
        self.misses += 1;
        if self.misses >= MOST_MISSES {
            return self.turn_off();
        }
        let num_inputs = std::mem::take(&mut calls.inputs).len();
        let known = Known { calls, num_inputs, graph: None, times: 1, last: self.time };
        if self.known.len() < MOST_KNOWN {
            self.known.push(known);
        } else if let Some(oldest) = self.known.iter_mut().min_by_key(|known| known.last) {
            *oldest = known;
        }
    }
}

/// The calls of [`Driver`]; what they promise and demand is written there.
impl Graphs {
    pub(super) fn info(&self) -> &Info {
        self.driver.info()
    }

    pub(super) fn free_bytes(&self) -> u64 {
        self.driver.free_bytes()
    }

    /// # Errors
    /// Also after a call that failed.
    pub(super) fn alloc(&self, bytes: usize) -> Result<Address, DeviceError> {
        self.taken(|driver| driver.alloc(bytes))
    }

    /// Memory, or why there is none: told to who asked, and noted if that is the end of the device.
    fn taken<T>(
        &self,
        take: impl FnOnce(&dyn Driver) -> Result<T, DeviceError>,
    ) -> Result<T, DeviceError> {
        if let Some(error) = self.failures.first() {
            return Err(error);
        }
        take(&*self.driver).inspect_err(|error| {
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
        self.ask(|driver| unsafe { driver.free(address) });
    }

    /// # Safety
    /// See [`Driver::write`].
    pub(super) unsafe fn write(&self, address: Address, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let collected = self.collect(|calls| {
            let start = calls.inputs.len();
            calls.inputs.extend_from_slice(bytes);
            Call::Write { to: address, part: start..calls.inputs.len() }
        });
        if !collected {
            // SAFETY: as promised.
            self.attempt(|driver| unsafe { driver.write(address, bytes) });
        }
    }

    /// Zeros after a call that failed.
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
        if !self.collect(|_| Call::Fill { address, byte, bytes }) {
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
        let collected = self.collect(|calls| {
            let start = calls.args.len();
            calls.args.extend_from_slice(args);
            Call::Launch { source, kernel, at, args: start..calls.args.len() }
        });
        if !collected {
            // SAFETY: as promised.
            self.attempt(|driver| unsafe { driver.launch(source, kernel, at, args) });
        }
    }

    /// # Safety
    /// See [`Driver::matmul`].
    pub(super) unsafe fn matmul(&self, matmul: &Matmul) {
        if !self.collect(|_| Call::Matmul(*matmul)) {
            // SAFETY: as promised.
            self.attempt(|driver| unsafe { driver.matmul(matmul) });
        }
    }

    /// # Errors
    /// Also after a call that failed.
    pub(super) fn alloc_host(&self, bytes: usize) -> Result<HostAddress, DeviceError> {
        self.taken(|driver| driver.alloc_host(bytes))
    }

    /// # Safety
    /// See [`Driver::free_host`].
    pub(super) unsafe fn free_host(&self, address: HostAddress) {
        self.catch_up();
        // SAFETY: as promised.
        self.ask(|driver| unsafe { driver.free_host(address) });
    }

    /// # Safety
    /// See [`Driver::prefetch`].
    pub(super) unsafe fn prefetch(&self, to: Address, from: HostAddress, bytes: usize) {
        // Copies beside a pass take it apart, into more pieces than are remembered.
        self.turn_off();
        // SAFETY: as promised.
        self.attempt(|driver| unsafe { driver.prefetch(to, from, bytes) });
    }

    pub(super) fn await_prefetches(&self) {
        self.catch_up();
        // Those before a failure are under way still.
        self.ask(|driver| driver.await_prefetches());
    }

    pub(super) fn synchronize(&self) {
        self.catch_up();
        self.ask(|driver| driver.synchronize());
    }
}

#[cfg(test)]
mod tests;
