//! Step memory: traced on the dry device, laid out in advance, then allocated without searching.
//!
//! A training step allocates and releases the same sizes in the same order every time. That order
//! is recorded once ([`Trace`]), every allocation gets a fixed offset ([`Layout`]), and real steps
//! allocate from one [`Arena`]. Each event of a real step is compared with the trace, so two live
//! blocks can never overlap.

use super::{Category, Device};
use hone_kernels::memory::{self, ALIGNMENT};
use hone_kernels::{DType, DeviceError, Processor, Storage, View, ViewMut, cuda, lock};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// An allocation or release; allocations are numbered from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The next allocation.
    Alloc {
        /// Size, not rounded.
        bytes: usize,
        /// Use.
        category: Category,
    },
    /// The release of an allocation.
    Free {
        /// Number of the allocation.
        id: usize,
    },
}

/// Allocations and releases of step memory, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    events: Vec<Event>,
}

/// An offset for every allocation of a [`Trace`].
#[derive(Clone, Debug)]
pub struct Layout {
    trace: Trace,
    offsets: Vec<usize>,
    bytes: usize,
    at_peak: BTreeMap<Category, usize>,
}

/// Lifetime of an allocation, in event numbers.
#[derive(Clone, Copy)]
struct Lifetime {
    bytes: usize,
    category: Category,
    start: usize,
    end: usize,
}

impl Trace {
    fn lives(&self) -> Vec<Lifetime> {
        let mut lives = Vec::new();
        for (at, event) in self.events.iter().enumerate() {
            match *event {
                Event::Alloc { bytes, category } => {
                    let bytes = bytes.next_multiple_of(ALIGNMENT);
                    lives.push(Lifetime { bytes, category, start: at, end: usize::MAX });
                }
                Event::Free { id } => lives[id].end = at,
            }
        }
        lives
    }
}

impl Layout {
    /// Places the largest allocations first, each at the lowest offset that is free during its
    /// lifetime (greedy by size; Pisarchyk & Lee, "Efficient Memory Management for Deep Neural Net
    /// Inference", 2020).
    pub fn of(trace: Trace) -> Self {
        let lives = trace.lives();
        let mut order: Vec<usize> = (0..lives.len()).collect();
        order.sort_by_key(|&i| (std::cmp::Reverse(lives[i].bytes), lives[i].start));
        let mut offsets = vec![0; lives.len()];
        // Sorted by offset.
        let mut placed: Vec<usize> = Vec::with_capacity(lives.len());
        for i in order {
            offsets[i] = lowest_gap(&lives, &offsets, &placed, i);
            let at = placed.partition_point(|&j| offsets[j] < offsets[i]);
            placed.insert(at, i);
        }
        let bytes = (0..lives.len()).map(|i| offsets[i] + lives[i].bytes).max().unwrap_or(0);
        let at_peak = categories_at_peak(&lives);
        Self { trace, offsets, bytes, at_peak }
    }

    /// Size of the arena that this layout needs.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Live bytes by category at the peak.
    pub fn at_peak(&self) -> &BTreeMap<Category, usize> {
        &self.at_peak
    }

    /// Number of allocations.
    pub fn num_allocations(&self) -> usize {
        self.offsets.len()
    }
}

fn lowest_gap(lives: &[Lifetime], offsets: &[usize], placed: &[usize], i: usize) -> usize {
    let life = lives[i];
    let mut candidate = 0;
    for &j in placed {
        let other = lives[j];
        if other.start < life.end && life.start < other.end {
            if offsets[j] >= candidate + life.bytes {
                break;
            }
            candidate = candidate.max(offsets[j] + other.bytes);
        }
    }
    candidate
}

fn categories_at_peak(lives: &[Lifetime]) -> BTreeMap<Category, usize> {
    let mut changes: Vec<(usize, isize, Category)> = Vec::new();
    for life in lives {
        changes.push((life.start, life.bytes as isize, life.category));
        changes.push((life.end, -(life.bytes as isize), life.category));
    }
    changes.sort_by_key(|c| c.0);
    let (mut live, mut total, mut peak) = (BTreeMap::<Category, isize>::new(), 0, 0);
    let mut at_peak = BTreeMap::new();
    for (_, bytes, category) in changes {
        *live.entry(category).or_default() += bytes;
        total += bytes;
        if total > peak {
            peak = total;
            at_peak = live.iter().map(|(&c, &b)| (c, b as usize)).collect();
        }
    }
    at_peak
}

/// A range of a device's memory.
#[derive(Clone, Debug)]
pub(super) enum Region {
    /// Host memory.
    Host(Arc<memory::Region>),
    /// GPU memory.
    Cuda(Arc<cuda::Region>),
    /// No memory: the dry device.
    Dry,
    /// No memory: allocated after a failure. Operations do nothing, and reads give zeros.
    Missing,
}

impl Region {
    pub(super) fn new(processor: Option<&Processor>, bytes: usize) -> Result<Self, DeviceError> {
        Ok(match processor {
            Some(Processor::Cpu(_)) => Self::Host(Arc::new(memory::Region::new(bytes)?)),
            Some(Processor::Cuda(gpu)) => Self::Cuda(Arc::new(cuda::Region::new(gpu, bytes)?)),
            None => Self::Dry,
        })
    }

    fn num_handles(&self) -> usize {
        match self {
            Self::Host(region) => Arc::strong_count(region),
            Self::Cuda(region) => Arc::strong_count(region),
            Self::Dry | Self::Missing => 1,
        }
    }
}

/// The memory of real steps.
pub struct Arena {
    region: Region,
    bytes: usize,
}

impl Arena {
    /// An arena of `bytes` on a device. Pages of host memory are allocated on first touch.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn new(device: &Device, bytes: usize) -> Result<Self, DeviceError> {
        Ok(Self { region: device.persistent_region(bytes)?, bytes })
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Memory of one tensor.
#[derive(Debug)]
pub struct Block {
    region: Region,
    offset: usize,
    len: usize,
    /// The account that this block is released from when it is dropped.
    account: Option<(Arc<Mutex<Memory>>, Account)>,
}

/// How a block is accounted for.
#[derive(Debug)]
enum Account {
    /// Step memory: the number of the allocation.
    Step(usize),
    /// Memory that outlives steps: category and bytes.
    Persistent(Category, usize),
}

impl Block {
    /// Step memory of `device`, which fails if memory runs out.
    pub(super) fn alloc(
        memory: &Arc<Mutex<Memory>>,
        category: Category,
        len: usize,
        device: &Device,
    ) -> Self {
        let (id, place) = lock(memory).alloc(category, len);
        let (region, offset) = match place {
            Place::At(region, offset) => (region, offset),
            Place::New(bytes) => (device.region(bytes), 0),
        };
        let account = Some((Arc::clone(memory), Account::Step(id)));
        let mut block = Self { region, offset, len, account };
        if cfg!(debug_assertions) {
            // Reads of uninitialised memory show up as NaN.
            block.fill(0xff);
        }
        block
    }

    /// Memory that outlives steps.
    pub(super) fn persistent(device: &Device, len: usize) -> Result<Self, DeviceError> {
        Ok(Self { region: device.persistent_region(len)?, offset: 0, len, account: None })
    }

    /// Counts the block in `category` until it is released.
    pub(super) fn counted(mut self, memory: &Arc<Mutex<Memory>>, category: Category) -> Self {
        lock(memory).count_persistent(category, self.len);
        self.account = Some((Arc::clone(memory), Account::Persistent(category, self.len)));
        self
    }

    /// A part of a region that blocks share, one at a time.
    pub(super) fn shared(region: &Region, offset: usize, len: usize) -> Self {
        Self { region: region.clone(), offset, len, account: None }
    }

    /// Zeroed host memory.
    pub(crate) fn on_host(len: usize) -> Result<Self, DeviceError> {
        let region = Region::Host(Arc::new(memory::Region::new(len)?));
        Ok(Self { region, offset: 0, len, account: None })
    }

    fn fill(&mut self, byte: u8) {
        match &self.region {
            Region::Host(_) => self.bytes_mut().fill(byte),
            Region::Cuda(region) => region.fill(self.offset, byte, self.len),
            Region::Dry | Region::Missing => {}
        }
    }

    /// Overwrites bytes beginning at `start`.
    pub(crate) fn write(&mut self, start: usize, bytes: &[u8]) {
        assert!(start <= self.len && bytes.len() <= self.len - start, "outside of a block");
        match &self.region {
            Region::Host(_) => self.bytes_mut()[start..][..bytes.len()].copy_from_slice(bytes),
            Region::Cuda(region) => region.write(self.offset + start, bytes),
            Region::Dry | Region::Missing => {}
        }
    }

    /// A copy in host memory; zeros after a failure.
    ///
    /// # Errors
    /// If the system has no more memory.
    pub(crate) fn to_host(&self) -> Result<Self, DeviceError> {
        let mut copy = Self::on_host(self.len)?;
        self.read(copy.bytes_mut());
        Ok(copy)
    }

    /// Copies all bytes to `bytes`; zeros after a failure.
    pub(crate) fn read(&self, bytes: &mut [u8]) {
        assert_eq!(bytes.len(), self.len, "a block is read whole");
        match &self.region {
            Region::Cuda(region) => region.read(self.offset, bytes),
            Region::Missing => bytes.fill(0),
            Region::Host(_) | Region::Dry => bytes.copy_from_slice(self.bytes()),
        }
    }

    /// Whether this is host memory.
    pub(crate) fn is_on_host(&self) -> bool {
        matches!(self.region, Region::Host(_))
    }

    /// The `len` elements, in rows of `cols`.
    pub(crate) fn view(&self, storage: Storage, (len, cols): (usize, usize)) -> View<'_> {
        match &self.region {
            Region::Cuda(region) => View::Cuda(region.slice(self.offset, storage, (len, cols))),
            _ => {
                memory::view(self.bytes(), storage, (len, cols)).expect("aligned when it was made")
            }
        }
    }

    /// The `len` elements, in rows of `cols`, for writing.
    pub(crate) fn view_mut(&mut self, dtype: DType, (len, cols): (usize, usize)) -> ViewMut<'_> {
        if self.is_on_host() {
            return memory::view_mut(self.bytes_mut(), dtype);
        }
        match &self.region {
            Region::Cuda(region) => {
                // SAFETY: as in `bytes_mut`.
                ViewMut::Cuda(unsafe { region.slice_mut(self.offset, dtype, (len, cols)) })
            }
            _ => panic!("a tensor of the dry device has no elements"),
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: live blocks of a region do not overlap (the layout makes them disjoint, and
        // `Memory` checks every event against it; a region that is reused has one block at a time,
        // and is handed on when that is dropped), and this one is not being written, since that
        // takes `&mut self`.
        unsafe { self.host().bytes(self.offset, self.len) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` makes this the only access to the block.
        unsafe { self.host().bytes_mut(self.offset, self.len) }
    }

    fn host(&self) -> &memory::Region {
        match &self.region {
            Region::Host(region) => region,
            Region::Cuda(_) => panic!("the CPU cannot reach a tensor in a GPU's memory"),
            Region::Dry => panic!("a tensor of the dry device has no elements"),
            Region::Missing => panic!("a tensor of a pass that failed has no elements"),
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let Some((memory, account)) = &self.account else { return };
        let mut memory = lock(memory);
        match account {
            Account::Persistent(category, bytes) => memory.release_persistent(*category, *bytes),
            Account::Step(id) if !std::thread::panicking() => memory.free(*id, &self.region),
            // Unwinding drops blocks in another order than the plan's, which `free` would panic
            // about, and a second panic would abort.
            Account::Step(_) => {}
        }
    }
}

/// Where an allocation goes.
enum Place {
    /// The region and the offset in it.
    At(Region, usize),
    /// A new region of so many bytes.
    New(usize),
}

/// How step memory is currently allocated.
#[derive(Debug, Default)]
enum Mode {
    /// From the system, without accounting.
    #[default]
    Heap,
    /// As `Heap`, but host memory that was released is allocated again.
    Reusing(Pool),
    Tracing(Trace),
    Planned {
        region: Region,
        layout: Arc<Layout>,
        next_event: usize,
    },
}

/// Released regions of host memory by size.
#[derive(Debug, Default)]
struct Pool(BTreeMap<usize, Vec<Region>>);

impl Pool {
    /// Sizes are multiples of an eighth of the next power of two, so that passes of about as many
    /// tokens find each other's memory.
    fn size(bytes: usize) -> usize {
        bytes.next_multiple_of((bytes.next_power_of_two() / 8).max(ALIGNMENT))
    }

    fn take(&mut self, bytes: usize) -> Option<Region> {
        let size = Self::size(bytes);
        if self.0.last_key_value().is_some_and(|(largest, _)| *largest < size) {
            // A longer pass has begun, which has little use for these.
            self.0.clear();
        }
        self.0.get_mut(&size)?.pop()
    }

    fn give(&mut self, region: &Region) {
        if let Region::Host(memory) = region {
            self.0.entry(memory.len()).or_default().push(region.clone());
        }
    }
}

#[derive(Debug, Default)]
pub struct Memory {
    mode: Mode,
    /// Allocations of the current trace or plan so far.
    allocated: usize,
    /// Incremented with each trace or plan, which ignores blocks of earlier ones.
    generation: usize,
    persistent: BTreeMap<Category, u64>,
}

/// Allocation numbers carry the generation in their upper half.
const GENERATION: u32 = 32;

impl Memory {
    fn alloc(&mut self, category: Category, bytes: usize) -> (usize, Place) {
        let (id, event) = (self.allocated, Event::Alloc { bytes, category });
        self.allocated += 1;
        let place = match &mut self.mode {
            Mode::Heap => Place::New(bytes),
            Mode::Reusing(pool) => match pool.take(bytes) {
                Some(region) => Place::At(region, 0),
                None => Place::New(Pool::size(bytes)),
            },
            Mode::Tracing(trace) => {
                trace.events.push(event);
                Place::New(bytes)
            }
            Mode::Planned { region, layout, next_event } => {
                expect_event(layout, next_event, event);
                Place::At(region.clone(), layout.offsets[id])
            }
        };
        (id | self.generation << GENERATION, place)
    }

    fn free(&mut self, id: usize, region: &Region) {
        let (generation, id) = (id >> GENERATION, id & ((1 << GENERATION) - 1));
        if generation != self.generation {
            return;
        }
        match &mut self.mode {
            Mode::Heap => {}
            Mode::Reusing(pool) => pool.give(region),
            Mode::Tracing(trace) => trace.events.push(Event::Free { id }),
            Mode::Planned { layout, next_event, .. } => {
                expect_event(layout, next_event, Event::Free { id });
            }
        }
    }

    fn switch(&mut self, mode: Mode) -> Mode {
        self.allocated = 0;
        self.generation += 1;
        std::mem::replace(&mut self.mode, mode)
    }

    pub(super) fn start_trace(&mut self) {
        let before = self.switch(Mode::Tracing(Trace::default()));
        assert!(matches!(before, Mode::Heap), "traces do not nest");
    }

    pub(super) fn end_trace(&mut self) -> Trace {
        let Mode::Tracing(trace) = self.switch(Mode::Heap) else { panic!("no trace was started") };
        let frees = trace.events.iter().filter(|e| matches!(e, Event::Free { .. })).count();
        assert_eq!(2 * frees, trace.events.len(), "step memory must not outlive the step");
        trace
    }

    pub(super) fn start_plan(&mut self, arena: &mut Arena, layout: &Arc<Layout>) {
        assert!(layout.bytes <= arena.bytes, "the arena is smaller than the plan");
        // A block left over from an earlier plan, or another device, would be overwritten.
        assert_eq!(arena.region.num_handles(), 1, "something still lives in the arena");
        let (region, layout) = (arena.region.clone(), Arc::clone(layout));
        let before = self.switch(Mode::Planned { region, layout, next_event: 0 });
        assert!(matches!(before, Mode::Heap), "plans do not nest");
    }

    pub(super) fn end_plan(&mut self) {
        let Mode::Planned { layout, next_event, .. } = self.switch(Mode::Heap) else {
            panic!("no plan was started")
        };
        assert_eq!(next_event, layout.trace.events.len(), "the step ended before its plan");
    }

    pub(super) fn start_reusing(&mut self) {
        let before = self.switch(Mode::Reusing(Pool::default()));
        assert!(matches!(before, Mode::Heap), "memory is reused outside of traces and plans");
    }

    pub(super) fn end_reusing(&mut self) {
        let before = self.switch(Mode::Heap);
        assert!(matches!(before, Mode::Reusing(_)), "memory was not being reused");
    }

    /// Returns to allocating from the system, after a step panicked.
    pub(super) fn abandon(&mut self) {
        self.switch(Mode::Heap);
    }

    pub(super) fn count_persistent(&mut self, category: Category, bytes: usize) {
        *self.persistent.entry(category).or_default() += bytes as u64;
    }

    fn release_persistent(&mut self, category: Category, bytes: usize) {
        *self.persistent.entry(category).or_default() -= bytes as u64;
    }

    pub(super) fn persistent(&self, category: Category) -> u64 {
        self.persistent.get(&category).copied().unwrap_or(0)
    }
}

fn expect_event(layout: &Layout, next_event: &mut usize, event: Event) {
    let planned = layout.trace.events.get(*next_event);
    assert_eq!(planned, Some(&event), "event {next_event} of the step differs from its plan");
    *next_event += 1;
}
