//! Plans of step memory: valid for any work, and enforced.

use crate::cuda::Gpu;
use crate::{Arena, Category, Cost, DType, Device, DeviceError, Layout, Philox, Tensor, Wanted};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// One step of some work: a new tensor, or the release of one of those alive.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Action {
    /// So many bf16 elements.
    Alloc(usize),
    /// The index in the list of living tensors.
    Free(usize),
}

fn random_work(seed: u64) -> Vec<Action> {
    let random = Philox::new(seed, 0);
    let (mut work, mut live) = (Vec::new(), 0);
    for i in 0..60 {
        let [choice, size, which, _] = random.words(i);
        if live > 0 && choice % 5 < 2 {
            work.push(Action::Free(which as usize % live));
            live -= 1;
        } else {
            // Small, large and empty ones; some of equal size.
            let len = size as usize % [1, 33, 700, 5000][choice as usize / 7 % 4];
            work.push(Action::Alloc(len));
            live += 1;
        }
    }
    work.extend((0..live).rev().map(Action::Free));
    work
}

/// Carries out the work. With memory, checks that no two living tensors overlap, by address and
/// by writing a pattern that must be intact at the end of each life.
fn carry_out(device: &Device, work: &[Action]) {
    let mut live: Vec<(usize, Tensor)> = Vec::new();
    for (number, action) in work.iter().enumerate() {
        match *action {
            Action::Alloc(len) => {
                let mut new = device.alloc(Category::Activations, DType::Bf16, &[len]);
                if !device.is_dry() {
                    live.iter().for_each(|(_, other)| assert_apart(&new, other));
                    new.view_mut().copy_from_f32(&vec![number as f32; len]);
                }
                live.push((number, new));
            }
            Action::Free(index) => {
                let (number, old) = live.remove(index);
                if !device.is_dry() {
                    assert!(old.view().to_vec_f32().iter().all(|&x| x == number as f32));
                }
            }
        }
    }
}

fn assert_apart(a: &Tensor, b: &Tensor) {
    let ends = |x: &Tensor| {
        let range = x.bytes().as_ptr_range();
        (range.start as usize, range.end as usize)
    };
    let ((a0, a1), (b0, b1)) = (ends(a), ends(b));
    assert!(a.is_empty() || b.is_empty() || a1 <= b0 || b1 <= a0, "blocks overlap");
}

/// Sizes as the arena rounds them: their sum, and the greatest sum alive at once.
fn sum_and_peak(work: &[Action]) -> (usize, usize) {
    let (mut live, mut sum, mut peak) = (Vec::new(), 0, 0);
    for action in work {
        match *action {
            Action::Alloc(len) => live.push((2 * len).next_multiple_of(64)),
            Action::Free(index) => drop(live.remove(index)),
        }
        if let (Action::Alloc(_), Some(bytes)) = (action, live.last()) {
            sum += bytes;
        }
        peak = peak.max(live.iter().sum());
    }
    (sum, peak)
}

fn plan(work: &[Action]) -> Arc<Layout> {
    let dry = Device::dry();
    Arc::new(Layout::of(dry.trace(|| carry_out(&dry, work)).1))
}

#[test]
fn every_layout_is_valid() {
    let device = Device::cpu(1);
    let (mut bytes, mut peaks) = (0, 0);
    for seed in 0..300 {
        let work = random_work(seed);
        let layout = plan(&work);
        let (sum, peak) = sum_and_peak(&work);
        assert!(peak <= layout.bytes() && layout.bytes() <= sum, "seed {seed}");
        assert_eq!(layout.at_peak().values().sum::<usize>(), peak);
        let allocs = work.iter().filter(|a| matches!(a, Action::Alloc(_))).count();
        assert_eq!(layout.num_allocations(), allocs);
        let mut arena = Arena::new(&device, layout.bytes()).unwrap();
        for _ in 0..2 {
            device.planned(&mut arena, &layout, || carry_out(&device, &work)).unwrap();
        }
        bytes += layout.bytes();
        peaks += peak;
    }
    assert!(bytes as f64 <= 1.1 * peaks as f64, "{bytes} bytes laid out, {peaks} needed");
}

/// Blocks of unplanned passes do not overlap either, and passes of about the same size get the
/// memory of those before them.
#[test]
fn released_memory_is_reused() {
    let device = Device::cpu(1);
    device.reusing_memory(|| (0..100).for_each(|seed| carry_out(&device, &random_work(seed))));

    let pass = |lens: [usize; 2]| {
        let alloc = |len| device.alloc(Category::Activations, DType::F32, &[len]);
        let tensors = lens.map(alloc);
        tensors.each_ref().map(|tensor| tensor.bytes().as_ptr() as usize)
    };
    let (first, second, kept) = device.reusing_memory(|| {
        let (first, second) = (pass([300_000, 40_000]), pass([299_000, 39_900]));
        (first, second, device.alloc(Category::Activations, DType::F32, &[40_000]))
    });
    assert_eq!(first, second);
    assert_eq!(kept.bytes().as_ptr() as usize, first[1]);
    drop(kept);
    let body = AssertUnwindSafe(|| device.reusing_memory(|| panic!("deliberate")));
    assert!(catch_unwind(body).is_err());
    device.reusing_memory(|| pass([10, 20]));
}

#[test]
fn a_step_that_deviates_from_its_plan_panics() {
    use Action::{Alloc, Free};
    let work = [Alloc(10), Alloc(20), Free(0), Alloc(30), Free(1), Free(0)];
    let deviations: [&[Action]; 6] = [
        &[Alloc(11)],
        &[Alloc(10), Free(0)],
        &[Alloc(10), Alloc(20), Free(1), Free(0)],
        &[Alloc(10), Alloc(20), Alloc(30), Free(2), Free(1), Free(0)],
        &[Alloc(10), Alloc(20), Free(0), Alloc(30), Free(1), Free(0), Alloc(1), Free(0)],
        &[],
    ];
    for other in deviations {
        let (layout, device) = (plan(&work), Device::cpu(1));
        let mut arena = Arena::new(&device, layout.bytes()).unwrap();
        let body = AssertUnwindSafe(|| {
            device.planned(&mut arena, &layout, || carry_out(&device, other)).unwrap();
        });
        assert!(catch_unwind(body).is_err(), "{other:?}");
    }
    let category = |device: &Device, category| drop(device.alloc(category, DType::F32, &[4]));
    let dry = Device::dry();
    let trace = dry.trace(|| category(&dry, Category::Head)).1;
    let (layout, device) = (Arc::new(Layout::of(trace)), Device::cpu(1));
    let mut arena = Arena::new(&device, layout.bytes()).unwrap();
    device.planned(&mut arena, &layout, || category(&device, Category::Head)).unwrap();
    let body = AssertUnwindSafe(|| {
        device.planned(&mut arena, &layout, || category(&device, Category::Workspace)).unwrap();
    });
    assert!(catch_unwind(body).is_err());
}

/// A panic for another reason unwinds through living blocks without a second one.
#[test]
fn a_panicking_step_unwinds() {
    let work = [Action::Alloc(10), Action::Alloc(20), Action::Free(0), Action::Free(0)];
    let (layout, device) = (plan(&work), Device::cpu(1));
    let mut arena = Arena::new(&device, layout.bytes()).unwrap();
    let body = AssertUnwindSafe(|| {
        device
            .planned(&mut arena, &layout, || {
                let _alive = device.alloc(Category::Activations, DType::Bf16, &[10]);
                panic!("deliberate");
            })
            .unwrap()
    });
    let panic = catch_unwind(body).expect_err("the step panics");
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"deliberate"));
    // The device and the arena can be used again.
    device.planned(&mut arena, &layout, || carry_out(&device, &work)).unwrap();
}

/// More than any machine has.
const TOO_MANY: usize = 1 << 58;

#[test]
fn memory_that_is_not_there_fails_the_pass_once() {
    let work = [Action::Alloc(10), Action::Free(0)];
    for device in [Device::cpu(1)].into_iter().chain(Gpu::for_tests().map(Device::cuda)) {
        let (layout, asked) = (plan(&work), 4 * TOO_MANY);
        let is_refused = |error: DeviceError| match error {
            DeviceError::OutOfMemory { wanted, .. } => wanted == Wanted::Bytes(asked as u64),
            _ => false,
        };
        let step = || drop(device.alloc(Category::Activations, DType::Bf16, &[10]));
        let _missing = device.alloc(Category::Activations, DType::F32, &[TOO_MANY]);
        let mut after = device.alloc(Category::Activations, DType::F32, &[5]);
        after.copy_from_f32(&[1.0; 5]);
        assert_eq!(after.to_vec_f32(), [0.0; 5], "what follows is not done");
        assert!(device.begin(Cost::memory_bound("none", 0)).is_none());
        assert!(device.settle().is_err_and(is_refused));
        assert_eq!(device.settle(), Ok(()), "told once");

        let mut arena = Arena::new(&device, layout.bytes()).unwrap();
        let failed = device.planned(&mut arena, &layout, || {
            device.fail(DeviceError::out_of_host_memory(asked));
            step();
        });
        assert!(failed.is_err_and(is_refused));
        device.planned(&mut arena, &layout, step).unwrap();

        let held = device.persistent(Category::Cache, DType::F32, &[TOO_MANY]);
        assert!(held.is_err_and(is_refused));
        assert!(Arena::new(&device, 4 * TOO_MANY).is_err_and(is_refused));
        assert_eq!(device.persistent_bytes(Category::Cache), 0);
        assert_eq!(device.settle(), Ok(()), "nothing is left of it");
    }
}

/// A failed allocation, in a pass or of memory that outlives it, makes a GPU release its caches;
/// earlier calls are still executed.
#[test]
fn a_failed_allocation_releases_caches() {
    let Some(gpu) = Gpu::for_tests() else { return };
    let device = Device::cuda(gpu.clone());
    let too_much = 4 * TOO_MANY;
    let attempts: [fn(&Device, usize) -> Option<DeviceError>; 3] = [
        |device, len| device.persistent(Category::Cache, DType::F32, &[len / 4]).err(),
        |device, len| Arena::new(device, len).err(),
        |device, len| {
            device.alloc(Category::Cache, DType::F32, &[len / 4]);
            device.settle().err()
        },
    ];
    for attempt in attempts {
        device.reserve(1 << 10, 0);
        let mut before = device.alloc(Category::Activations, DType::F32, &[2]);
        before.copy_from_f32(&[1.0, 2.0]);
        assert_eq!(gpu.max_scratch_bytes(), 1 << 10);
        assert!(attempt(&device, too_much).is_some_and(|error| error.is_out_of_memory()));
        assert_eq!(gpu.max_scratch_bytes(), 0);
        assert_eq!(device.settle(), Ok(()), "told once");
        assert_eq!(before.to_vec_f32(), [1.0, 2.0]);
    }
}

#[test]
fn blocks_that_survive_the_step_are_caught() {
    let alloc = |device: &Device| device.alloc(Category::Activations, DType::Bf16, &[10]);
    let dry = Device::dry();
    assert!(catch_unwind(AssertUnwindSafe(|| dry.trace(|| alloc(&dry)))).is_err());

    let layout = plan(&[Action::Alloc(10), Action::Free(0)]);
    let device = Device::cpu(1);
    let (mut arena, mut kept) = (Arena::new(&device, layout.bytes()).unwrap(), None);
    let mut attempt = |device: &Device, keep: &mut Option<Tensor>, keeps: bool| {
        let body = AssertUnwindSafe(|| {
            device
                .planned(&mut arena, &layout, || {
                    let new = alloc(device);
                    if keeps {
                        *keep = Some(new);
                    }
                })
                .unwrap();
        });
        catch_unwind(body).is_ok()
    };
    assert!(attempt(&device, &mut kept, false));
    assert!(!attempt(&device, &mut kept, true));
    // As long as the survivor lives, its memory is not given out again, by no device.
    let another = Device::cpu(1);
    let mut none = None;
    assert!(kept.is_some() && !attempt(&another, &mut none, false));
    drop(kept);
    assert!(attempt(&Device::cpu(1), &mut none, false));
}

#[test]
fn an_arena_must_be_as_large_as_its_plan_and_used_once_at_a_time() {
    let layout = plan(&[Action::Alloc(100), Action::Free(0)]);
    let device = Device::cpu(1);
    let mut small = Arena::new(&device, layout.bytes() - 64).unwrap();
    let body = AssertUnwindSafe(|| device.planned(&mut small, &layout, || ()).unwrap());
    assert!(catch_unwind(body).is_err());

    let device = Device::cpu(1);
    let mut arena = Arena::new(&device, layout.bytes()).unwrap();
    let mut other = Arena::new(&device, layout.bytes()).unwrap();
    let body = AssertUnwindSafe(|| {
        let inner = || device.planned(&mut other, &layout, || ()).unwrap();
        device.planned(&mut arena, &layout, inner).unwrap();
    });
    assert!(catch_unwind(body).is_err(), "plans do not nest");
}

/// Memory of before a step may go during it, and persistent memory has no part in it.
#[test]
fn a_plan_counts_only_what_its_step_allocates() {
    let work = [Action::Alloc(7), Action::Free(0)];
    let (layout, device) = (plan(&work), Device::cpu(1));
    let mut arena = Arena::new(&device, layout.bytes()).unwrap();
    let before = device.alloc(Category::Activations, DType::F32, &[3]);
    device
        .planned(&mut arena, &layout, || {
            drop(before);
            let persistent = device.persistent(Category::Optimizer, DType::F32, &[5]).unwrap();
            assert_eq!(device.persistent_bytes(Category::Optimizer), 20);
            drop(persistent);
            carry_out(&device, &work);
        })
        .unwrap();
    assert_eq!(device.persistent_bytes(Category::Optimizer), 0, "released");
}
