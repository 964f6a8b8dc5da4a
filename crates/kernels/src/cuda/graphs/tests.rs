use super::{MAX_MISSES, MIN_CALLS};
use crate::cuda::{Fault, Faults, Gpu, HostBlock, Region};
use crate::processor::Processor;
use crate::{DType, View, ViewMut};

/// Rows of numbers, and a buffer that some of them are gathered in.
struct Scene {
    on: Processor,
    gpu: Gpu,
    x: Region,
    y: Region,
}

const ROWS: usize = 8;
const COLS: usize = 4;
const LEN: usize = ROWS * COLS;

impl Scene {
    fn new() -> Option<Self> {
        Gpu::for_tests().map(Self::on)
    }

    fn on(gpu: Gpu) -> Self {
        let (x, y) = (Region::new(&gpu, 4 * LEN).unwrap(), Region::new(&gpu, 4 * LEN).unwrap());
        let numbers: Vec<f32> = (0..LEN).map(|i| i as f32).collect();
        x.write(0, crate::memory::bytes_of(View::F32(&numbers)));
        Self { on: Processor::Cuda(gpu.clone()), gpu, x, y }
    }

    /// The result of a pass that gathers `rows` repeatedly.
    fn gathered(&self, rows: &[u32]) -> Vec<f32> {
        self.gpu.pass(|| {
            for _ in 0..MIN_CALLS {
                self.gather(rows);
            }
            self.found(rows.len())
        })
    }

    fn gather(&self, rows: &[u32]) {
        let [x, y] = [&self.x, &self.y].map(|all| all.slice(0, DType::F32, (LEN, COLS)));
        self.on.begin();
        self.on.gather_rows(View::Cuda(x), COLS, rows, ViewMut::of_gpu(y));
    }

    fn found(&self, rows: usize) -> Vec<f32> {
        self.gpu.download(self.y.slice(0, DType::F32, (LEN, COLS)).address(), rows * COLS)
    }
}

fn expected(rows: &[u32]) -> Vec<f32> {
    rows.iter().flat_map(|&row| (0..COLS).map(move |i| (row as usize * COLS + i) as f32)).collect()
}

/// The third time, the calls become a graph, whatever their inputs.
#[test]
fn a_gpu_replays_the_same_calls_with_other_inputs() {
    let Some(scene) = Scene::new() else { return };
    // The first pass also reserves memory for uploads.
    scene.gathered(&[0, 1, 2]);
    for (rows, replays) in [([1, 3, 5], 0), ([2, 7, 1], 0), ([7, 0, 2], 1), ([4, 4, 6], 2)] {
        assert_eq!(scene.gathered(&rows), expected(&rows));
        assert_eq!(scene.gpu.num_replays(), replays, "{rows:?}");
    }
    // Another number of rows is another launch.
    assert_eq!(scene.gathered(&[2, 1]), expected(&[2, 1]));
    assert_eq!(scene.gpu.num_replays(), 2);
    assert_eq!(scene.gathered(&[3, 3, 3]), expected(&[3, 3, 3]));
    assert_eq!(scene.gpu.num_replays(), 3);
}

/// Anything but inputs must be the same.
#[test]
fn a_gpu_tells_parameters_apart() {
    let Some(scene) = Scene::new() else { return };
    let [x, y] = [&scene.x, &scene.y].map(|all| all.slice(0, DType::F32, (LEN, COLS)));
    for (factor, replays) in [(2.0, 0), (2.0, 0), (2.0, 1), (3.0, 1), (2.0, 2), (3.0, 2), (3.0, 3)]
    {
        scene.gpu.pass(|| {
            let (x, y) = (View::Cuda(x), || ViewMut::of_gpu(y));
            (0..MIN_CALLS).for_each(|_| scene.on.scale(x, factor, y()));
        });
        let expected: Vec<f32> = (0..LEN).map(|i| factor * i as f32).collect();
        assert_eq!(scene.found(ROWS), expected);
        assert_eq!(scene.gpu.num_replays(), replays);
    }
}

/// Reads within a pass, and calls outside of one, are not deferred.
#[test]
fn calls_are_executed_in_order() {
    let Some(scene) = Scene::new() else { return };
    for row in 0..3 {
        scene.gpu.pass(|| {
            scene.gather(&[row]);
            assert_eq!(scene.found(1), expected(&[row]), "read within a pass");
            scene.gather(&[row + 1]);
        });
        assert_eq!(scene.found(1), expected(&[row + 1]), "read after a pass");
        scene.gather(&[row + 2]);
        assert_eq!(scene.found(1), expected(&[row + 2]), "outside of a pass");
    }
    assert_eq!(scene.gpu.num_replays(), 0, "few calls are not worth it");
}

/// Calls of a pass that panics are dropped.
#[test]
fn a_gpu_forgets_a_pass_that_panics() {
    let Some(scene) = Scene::new() else { return };
    scene.gather(&[0]);
    let pass = || {
        scene.gpu.pass(|| {
            scene.gather(&[1]);
            panic!("as it may");
        });
    };
    let before = scene.gpu.failures().count();
    let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(pass));
    assert!(failed.is_err());
    assert!(scene.gpu.failures().count() > before, "copies of before may not be there");
    assert_eq!(scene.gpu.settle(), Ok(()));
    assert_eq!(scene.found(1), expected(&[0]));
}

/// Graphs are disabled if passes do not repeat, or on request.
#[test]
fn graphs_are_disabled_if_passes_do_not_repeat() {
    let Some(scene) = Scene::new() else { return };
    let rows: Vec<u32> = (0..ROWS as u32).collect();
    let all_of = |times: usize| {
        scene.gpu.pass(|| (0..MIN_CALLS + times).for_each(|_| scene.gather(&rows)));
        assert_eq!(scene.found(ROWS), expected(&rows));
    };
    (0..MAX_MISSES + 2).for_each(all_of);
    all_of(MAX_MISSES + 1);
    assert_eq!(scene.gpu.num_replays(), 0);

    let Some(scene) = Scene::new() else { return };
    scene.gpu.disable_graphs();
    for _ in 0..4 {
        assert_eq!(scene.gathered(&rows), expected(&rows));
    }
    assert_eq!(scene.gpu.num_replays(), 0);
}

/// Failed allocations, of host memory too, report why; a GPU that is lost does so from then on.
#[test]
fn memory_that_a_gpu_refuses_is_not_a_gpu_that_is_lost() {
    for fault in [Fault::OutOfMemory, Fault::Driver, Fault::Lost] {
        let faults = Faults::default();
        let Some(gpu) = Gpu::for_tests_with(&faults) else { return };
        faults.start(1, fault);
        for error in [HostBlock::new(&gpu, 64).err(), Region::new(&gpu, 64).err()] {
            let error = error.expect("every call is refused");
            assert_eq!(error.is_lost(), fault == Fault::Lost, "{error}");
            assert_eq!(error.is_out_of_memory(), fault == Fault::OutOfMemory, "{error}");
        }
        faults.stop();
        assert_eq!(gpu.settle().is_err(), fault == Fault::Lost);
        assert_eq!(HostBlock::new(&gpu, 64).is_err(), fault == Fault::Lost);
    }
}

/// If a GPU is lost while a graph is captured, the calls are not issued one by one.
#[test]
fn a_gpu_that_is_lost_refuses_more_than_a_graph() {
    let faults = Faults::default();
    let Some(scene) = Gpu::for_tests_with(&faults).map(Scene::on) else { return };
    (0..3).for_each(|_| drop(scene.gathered(&[1, 2])));
    faults.start(1, Fault::Lost);
    assert_eq!(scene.gathered(&[1, 2]), [0.0; 2 * COLS]);
    let error = scene.gpu.settle().expect_err("it is lost");
    assert!(error.is_lost() && error.to_string().contains("capturing a graph"), "{error}");
    assert_eq!(scene.gpu.take_graph_error(), None);
}
