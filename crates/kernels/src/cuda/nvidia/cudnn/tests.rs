//! What is asked of cuDNN, seen by a library that only writes it down; and, where
//! `HONE_TEST_CUDNN` names the folder of a real one, that it has plans for what is asked. That
//! needs no GPU, but the libraries that cuDNN loads: cuBLASLt, NVRTC and the driver's.

use super::attention::id;
use super::graph::{Descriptor, Mode, Type, attribute, kind};
use super::library::Opaque;
use super::*;
use crate::DType;
use crate::cuda::driver::AttentionGradients;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_void};
use std::io::Write as _;
use std::path::PathBuf;

/// A descriptor as it was made: bytes of each attribute.
#[derive(Clone, Default)]
struct Made {
    kind: i32,
    attributes: BTreeMap<i32, Vec<u8>>,
    is_final: bool,
}

thread_local! {
    /// Descriptors are their place here, from 1.
    static MADE: RefCell<Vec<Made>> = const { RefCell::new(Vec::new()) };
    /// The number and the address of each tensor of the last execution.
    static RUN: RefCell<Vec<(i64, u64)>> = const { RefCell::new(Vec::new()) };
    /// What is given by value in executions.
    static SCALARS: RefCell<BTreeMap<i64, f32>> = const { RefCell::new(BTreeMap::new()) };
}

extern "C" fn error_string(_: i32) -> *const c_char {
    c"FAKE".as_ptr()
}
extern "C" fn last_error_string(text: *mut c_char, _: usize) {
    // SAFETY: there is room for a zero.
    unsafe { text.write(0) };
}
extern "C" fn create(_: *mut Opaque) -> i32 {
    unreachable!("tests give a handle")
}
extern "C" fn set_stream(_: Opaque, _: Opaque) -> i32 {
    0
}
extern "C" fn create_descriptor(kind: i32, into: *mut Opaque) -> i32 {
    MADE.with_borrow_mut(|made| {
        made.push(Made { kind, ..Made::default() });
        // SAFETY: the caller's variable.
        unsafe { into.write(made.len() as Opaque) };
    });
    0
}
extern "C" fn destroy_descriptor(_: Opaque) -> i32 {
    0
}
extern "C" fn set_attribute(
    of: Opaque,
    attribute: i32,
    kind: i32,
    count: i64,
    values: *const c_void,
) -> i32 {
    let size = match kind {
        2 => 1,
        1 | 4 | 8 | 14 | 18 => 4,
        0 | 3 | 6 | 15 => 8,
        other => panic!("type {other}"),
    };
    // SAFETY: the caller gives so many values of this size.
    let bytes = unsafe { std::slice::from_raw_parts(values.cast::<u8>(), size * count as usize) };
    MADE.with_borrow_mut(|made| {
        let descriptor = &mut made[of as usize - 1];
        assert!(!descriptor.is_final, "attribute {attribute} comes too late");
        descriptor.attributes.insert(attribute, bytes.to_vec());
    });
    0
}
extern "C" fn get_attribute(
    _: Opaque,
    attribute: i32,
    _: i32,
    room: i64,
    count: *mut i64,
    values: *mut c_void,
) -> i32 {
    // Two ways are announced, and one comes.
    let number = if room == 0 { 2 } else { 1 };
    // SAFETY: the caller's variables.
    unsafe {
        count.write(number);
        if attribute == attribute::PLAN_WORKSPACE {
            values.cast::<i64>().write(4096);
        }
    }
    0
}
extern "C" fn finalize(of: Opaque) -> i32 {
    MADE.with_borrow_mut(|made| made[of as usize - 1].is_final = true);
    0
}
extern "C" fn execute(_: Opaque, _: Opaque, pack: Opaque) -> i32 {
    let pack = MADE.with_borrow(|made| made[pack as usize - 1].clone());
    let ids = pack.numbers(attribute::PACK_IDS);
    let pointers = pack.numbers(attribute::PACK_POINTERS);
    for (&id, &pointer) in ids.iter().zip(&pointers) {
        let is_scalar = MADE.with_borrow(|made| {
            let named = |made: &&Made| made.numbers(attribute::TENSOR_ID) == [id];
            let tensor = made.iter().rfind(named).expect("tensors of the graph");
            tensor.attributes.contains_key(&attribute::TENSOR_IS_BY_VALUE)
        });
        if is_scalar {
            // SAFETY: scalars are the host's, and live during the call.
            let value = unsafe { *(pointer as *const f32) };
            SCALARS.with_borrow_mut(|scalars| scalars.insert(id, value));
        }
    }
    let addresses = pointers.iter().map(|&pointer| pointer as u64);
    RUN.set(ids.iter().copied().zip(addresses).collect());
    0
}

fn fake(version: usize) -> &'static Library {
    Box::leak(Box::new(Library {
        version: Version(version),
        error_string,
        last_error_string,
        create,
        set_stream,
        create_descriptor,
        destroy_descriptor,
        set_attribute,
        get_attribute,
        finalize,
        execute,
    }))
}

impl Made {
    /// An attribute's 64-bit numbers, descriptors among them.
    fn numbers(&self, attribute: i32) -> Vec<i64> {
        let bytes = self.attributes.get(&attribute).map_or(&[][..], Vec::as_slice);
        bytes.chunks(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect()
    }

    /// An attribute that is a number of 32 bits.
    fn word(&self, attribute: i32) -> i32 {
        i32::from_le_bytes(self.attributes[&attribute][..].try_into().unwrap())
    }

    /// What an attribute refers to.
    fn referred(&self, attribute: i32) -> Made {
        let at = self.numbers(attribute)[0] as usize - 1;
        let made = MADE.with_borrow(|made| made[at].clone());
        assert!(made.is_final, "attribute {attribute} refers to what is not finished");
        made
    }
}

/// The tensor with a number.
fn tensor(id: i64) -> Made {
    let found =
        |made: &Made| made.kind == kind::TENSOR && made.numbers(attribute::TENSOR_ID) == [id];
    MADE.with_borrow(|made| made.iter().find(|&made| found(made)).cloned()).expect("a tensor")
}

fn operations() -> Vec<Made> {
    let graph =
        MADE.with_borrow(|made| made.iter().rfind(|made| made.kind == kind::GRAPH).cloned());
    let operations = graph.expect("a graph").numbers(attribute::GRAPH_OPERATIONS);
    MADE.with_borrow(|made| operations.iter().map(|&at| made[at as usize - 1].clone()).collect())
}

/// Dimensions, strides, type, and the number of what says where sequences start.
fn seen(id: i64) -> ([i64; 4], [i64; 4], Type, Option<i64>) {
    let tensor = tensor(id);
    let four = |attribute| tensor.numbers(attribute).try_into().unwrap();
    let starts = tensor
        .attributes
        .contains_key(&attribute::TENSOR_STARTS)
        .then(|| tensor.referred(attribute::TENSOR_STARTS).numbers(attribute::TENSOR_ID)[0]);
    let of = Type(tensor.word(attribute::TENSOR_TYPE));
    (four(attribute::TENSOR_DIMS), four(attribute::TENSOR_STRIDES), of, starts)
}

/// Five query heads on each of two key heads, with a window.
fn grouped(pass: Pass) -> AttentionShape {
    AttentionShape {
        pass,
        dtype: DType::Bf16,
        num_sequences: 3,
        longest: 200,
        num_heads: 10,
        num_kv_heads: 2,
        head_dim: 64,
        is_windowed: true,
    }
}

fn arrays() -> AttentionArrays {
    AttentionArrays {
        scale: 0.5,
        window: 100.0,
        qkv: 0x1000,
        out: 0x2000,
        lse: 0x3000,
        starts: [0x100, 0x200, 0x300, 0x400],
        lengths: 0x500,
        workspace: 0x600,
        gradients: None,
    }
}

fn cudnn(version: usize, capability: (u32, u32)) -> Cudnn {
    MADE.set(Vec::new());
    Cudnn::of(fake(version), Device::Handle(Handle(std::ptr::null_mut())), capability)
}

#[test]
fn forward_graph_has_the_packed_rows() {
    let mut cudnn = cudnn(91002, (9, 0));
    let plan = cudnn.plan(&grouped(Pass::Forward), || ()).unwrap();
    let lse = LseLayout::Tokens;
    let expected = AttentionPlan { num_sequences: 3, longest: 256, lse, workspace_bytes: 4096 };
    assert_eq!(plan, expected);

    let (b, s, d, hq, hk) = (3, 256, 64, 10, 2);
    let row = (hq + 2 * hk) * d;
    let (bf16, starts) = (Type::BF16, |id| ([b + 1, 1, 1, 1], [1; 4], Type::I64, None::<i64>, id));
    let packed = [s * row, d, row, 1];
    assert_eq!(seen(id::Q), ([b, hq, s, d], packed, bf16, Some(id::Q_STARTS)));
    let turned = [s * row, d, 1, row];
    assert_eq!(seen(id::K), ([b, hk, d, s], turned, bf16, Some(id::K_STARTS)));
    assert_eq!(seen(id::V), ([b, hk, s, d], packed, bf16, Some(id::V_STARTS)));
    let own = [s * hq * d, d, hq * d, 1];
    assert_eq!(seen(id::OUT), ([b, hq, s, d], own, bf16, Some(id::OUT_STARTS)));
    let by_token = [hq * s, 1, hq, 1];
    assert_eq!(seen(id::LSE), ([b, hq, s, 1], by_token, Type::F32, Some(id::LSE_STARTS)));
    for (dims, strides, of, none, id) in
        [id::Q_STARTS, id::K_STARTS, id::V_STARTS, id::OUT_STARTS, id::LSE_STARTS].map(starts)
    {
        assert_eq!(seen(id), (dims, strides, of, none));
    }
    assert_eq!(seen(id::Q_LENGTHS), ([b, 1, 1, 1], [1; 4], Type::I32, None));
}

/// The pattern that cuDNN's engines know: products, masks, softmax, products.
#[test]
fn forward_graph_is_the_pattern() {
    let (mut cudnn, shape) = (cudnn(91002, (9, 0)), grouped(Pass::Forward));
    let modes = |cudnn: &mut Cudnn, shape| {
        cudnn.plan(&shape, || ()).unwrap();
        let mode = |operation: &Made| match operation.kind {
            kind::MATMUL_OPERATION => Ok("matmul"),
            kind::REDUCTION_OPERATION => Ok("reduce"),
            kind::POINTWISE_OPERATION => {
                let how = operation.referred(attribute::POINTWISE_DESCRIPTOR);
                Err(Mode(how.word(attribute::POINTWISE_MODE)))
            }
            other => panic!("kind {other}"),
        };
        operations().iter().map(mode).collect::<Vec<_>>()
    };
    let scores = [Ok("matmul"), Err(Mode::MUL)];
    let positions = [Err(Mode::INDEX), Err(Mode::INDEX)];
    let padding = [Err(Mode::LESS), Err(Mode::LESS), Err(Mode::AND), Err(Mode::SELECT)];
    let later = [Err(Mode::GREATER_OR_EQUAL), Err(Mode::SELECT)];
    let window = [Err(Mode::ADD), Err(Mode::GREATER), Err(Mode::SELECT)];
    let softmax = [
        Ok("reduce"),
        Err(Mode::SUB),
        Err(Mode::EXP),
        Ok("reduce"),
        Err(Mode::LOG),
        Err(Mode::ADD),
        Err(Mode::DIV),
        Ok("matmul"),
    ];
    let causal = [&scores[..], &positions, &padding, &positions, &later].concat();
    let windowed = [&causal[..], &positions, &window, &softmax].concat();
    assert_eq!(modes(&mut cudnn, shape), windowed);
    let plain = AttentionShape { is_windowed: false, ..shape };
    assert_eq!(modes(&mut cudnn, plain), [&causal[..], &softmax].concat());
    assert_eq!(operations().len(), 20);
}

#[test]
fn a_run_says_where_everything_is() {
    let (mut cudnn, shape) = (cudnn(91002, (9, 0)), grouped(Pass::Forward));
    cudnn.plan(&shape, || ()).unwrap();
    cudnn.run(&shape, &arrays());
    let at: BTreeMap<i64, u64> = RUN.take().into_iter().collect();
    assert_eq!(at[&id::Q], 0x1000);
    assert_eq!(at[&id::K], 0x1000 + 2 * 64 * 10);
    assert_eq!(at[&id::V], 0x1000 + 2 * 64 * 12);
    assert_eq!([at[&id::OUT], at[&id::LSE]], [0x2000, 0x3000]);
    assert_eq!([at[&id::Q_STARTS], at[&id::K_STARTS], at[&id::V_STARTS]], [0x100; 3]);
    assert_eq!([at[&id::OUT_STARTS], at[&id::LSE_STARTS]], [0x200, 0x300]);
    assert_eq!([at[&id::Q_LENGTHS], at[&id::K_LENGTHS]], [0x500; 2]);
    let scalars = SCALARS.take();
    assert_eq!([scalars[&id::SCALE], scalars[&id::WINDOW]], [0.5, 100.0]);
    assert!(id::UNSEEN.iter().all(|id| scalars[id] == f32::NEG_INFINITY));
    // All that the graph has in memory, and nothing else.
    assert_eq!(in_memory(), at.into_keys().collect::<Vec<_>>());
}

/// Numbers of the tensors that a call must have.
fn in_memory() -> Vec<i64> {
    let ids: Vec<i64> = MADE.with_borrow(|made| {
        let tensors = made.iter().filter(|made| made.kind == kind::TENSOR);
        tensors.map(|made| made.numbers(attribute::TENSOR_ID)[0]).collect()
    });
    let mut in_memory: Vec<i64> =
        ids.into_iter().filter(|&id| id < super::graph::FIRST_VIRTUAL).collect();
    in_memory.sort_unstable();
    in_memory
}

/// Gradients have rows of their own, those of keys and values a place for each query head.
#[test]
fn backward_graph_has_rows_of_its_own() {
    let (mut cudnn, shape) = (cudnn(91002, (9, 0)), grouped(Pass::Backward));
    let plan = cudnn.plan(&shape, || ()).unwrap();
    assert_eq!((plan.num_sequences, plan.longest, plan.lse), (3, 256, LseLayout::Tokens));
    let (b, s, d, hq, hk) = (3, 256, 64, 10, 2);
    let row = (hq + 2 * hk) * d;
    let turned = [s * row, d, 1, row];
    assert_eq!(seen(id::V), ([b, hk, d, s], turned, Type::BF16, Some(id::V_STARTS)));
    let rows = |heads| [s * heads * d, d, heads * d, 1];
    for (id, of, heads, starts) in [
        (id::D_OUT, Type::BF16, hq, id::OUT_STARTS),
        (id::D_Q, Type::BF16, hq, id::D_Q_STARTS),
        (id::SUMS, Type::F32, hq, id::D_Q_STARTS),
        (id::D_K, Type::BF16, hk, id::D_K_STARTS),
        (id::K_BY_HEAD, Type::BF16, hq, id::D_K_STARTS),
        (id::D_V, Type::BF16, hk, id::D_V_STARTS),
        (id::V_BY_HEAD, Type::BF16, hq, id::D_V_STARTS),
    ] {
        assert_eq!(seen(id), ([b, heads, s, d], rows(heads), of, Some(starts)), "{id}");
    }
    let by_token = [hq * s, 1, hq, 1];
    assert_eq!(seen(id::DELTA), ([b, hq, s, 1], by_token, Type::F32, Some(id::LSE_STARTS)));

    let gradients = AttentionGradients {
        d_out: 0x10,
        d_q: 0x20,
        d_k: 0x30,
        d_v: 0x40,
        delta: 0x50,
        sums: 0x60,
        by_head: [0x70, 0x80],
    };
    cudnn.run(&shape, &AttentionArrays { gradients: Some(gradients), ..arrays() });
    let at: BTreeMap<i64, u64> = RUN.take().into_iter().collect();
    assert_eq!([at[&id::D_Q], at[&id::SUMS], at[&id::V_BY_HEAD]], [0x20, 0x60, 0x80]);
    assert_eq!([at[&id::D_Q_STARTS], at[&id::D_K_STARTS]], [0x200, 0x400]);
    assert_eq!(SCALARS.take()[&id::ONE], 1.0);
    assert_eq!(in_memory(), at.into_keys().collect::<Vec<_>>());
}

#[test]
fn plans_are_shared_and_limited() {
    let (mut old, mut new) = (cudnn(91002, (9, 0)), cudnn(92500, (9, 0)));
    let of = |num_sequences, longest| AttentionShape {
        num_sequences,
        longest,
        ..grouped(Pass::Forward)
    };
    let room = |plan: AttentionPlan| (plan.num_sequences, plan.longest);
    let never = || panic!("there is room");
    assert_eq!(room(old.plan(&of(5, 100), never).unwrap()), (5, 128));
    assert_eq!(room(new.plan(&of(5, 129), never).unwrap()), (8, 256));
    assert_eq!(room(new.plan(&of(9, 256), never).unwrap()), (16, 256));
    new.plan(&of(8, 200), never).unwrap();
    assert_eq!(new.plans.len(), 2);
    // That for five was made before.
    for num_sequences in 1..=MOST_PLANS {
        old.plan(&of(num_sequences, 100), never).unwrap();
    }
    let mut waited = false;
    old.plan(&of(MOST_PLANS + 1, 100), || waited = true).unwrap();
    assert!(waited && old.plans.len() == MOST_PLANS);
}

#[test]
fn gpus_and_versions_that_are_served() {
    let lse = |capability, version| lse_layout(capability, Version(version)).ok();
    assert_eq!(lse((9, 0), 91002), Some(LseLayout::Tokens));
    assert_eq!(lse((10, 3), 91002), Some(LseLayout::Tokens));
    assert_eq!(lse((8, 6), 91801), Some(LseLayout::Padded));
    assert_eq!(lse((12, 0), 91800), None);
    assert_eq!(lse((7, 5), 92801), None);
    let mut cudnn = cudnn(91801, (8, 0));
    let plan = cudnn.plan(&grouped(Pass::Forward), || ()).unwrap();
    assert_eq!(plan.lse, LseLayout::Padded);
    let padded = [10 * 256, 256, 1, 1];
    assert_eq!(seen(id::LSE), ([3, 10, 256, 1], padded, Type::F32, None));
    let narrow = AttentionShape { head_dim: 36, ..grouped(Pass::Forward) };
    assert_eq!(cudnn.plan(&narrow, || ()), None);
    assert_eq!(cudnn.name(), "cuDNN 9.18.1");
}

/// Descriptions of an H100 and an A100, as cuDNN takes them.
fn described(library: &'static Library, capability: (u32, u32)) -> Device {
    let (version, shared, multiprocessors) = match capability {
        (9, 0) => (900, 232_448, 132),
        _ => (800, 166_912, 108),
    };
    let text = format!(
        "{{\"deviceVer\":{version},\"driverVer\":13000,\"cudaDeviceId\":0,\
         \"maxGridSize\":[2147483647,65535,65535],\"maxBlockSize\":[1024,1024,64],\
         \"regsPerBlock\":65536,\"multiProcessorCount\":{multiprocessors},\"smCountOrigin\":0,\
         \"warpSize\":32,\"maxSharedMemoryPerBlock\":49152,\
         \"maxSharedMemoryPerBlockOptin\":{shared},\"oversizedSharedMemoryPerBlock\":0,\
         \"reservedSharedMemoryPerBlock\":1024,\"maxRegistersPerSM\":65536,\"maxCtasPerSM\":32,\
         \"maxThreadsPerBlock\":1024,\"maxThreadsPerSM\":2048,\"pciDeviceId\":0,\
         \"isTccDriver\":0,\"supportCoopLaunch\":1,\"smClockRateKHz\":1410000,\
         \"memClockRateKHz\":1215000,\"memoryBusWidth\":5120,\"l2CacheSize\":41943040,\
         \"totalGlobalMem\":85000000000,\"deviceName\":\"NVIDIA\"}}\0"
    );
    let device = Descriptor::new(library, kind::DEVICE).unwrap();
    device.set(attribute::DEVICE_DESCRIPTION, text.as_bytes()).unwrap();
    Device::Described(device.finalize().unwrap())
}

fn real() -> Option<&'static Library> {
    let Some(folder) = std::env::var_os("HONE_TEST_CUDNN").map(PathBuf::from) else {
        // Not by a macro: the test harness would swallow it.
        let _ = writeln!(std::io::stderr(), "skipped: HONE_TEST_CUDNN names no cuDNN");
        return None;
    };
    let library = Library::find(&[folder]).unwrap_or_else(|error| panic!("{error}"));
    let _ = writeln!(std::io::stderr(), "cuDNN {}", library.version);
    Some(Box::leak(Box::new(library)))
}

#[test]
fn a_real_library_has_plans() {
    let Some(library) = real() else { return };
    for capability in [(9, 0), (8, 0)] {
        if let Err(reason) = lse_layout(capability, library.version) {
            let _ = writeln!(std::io::stderr(), "skipped {capability:?}: {reason}");
            continue;
        }
        let mut cudnn = Cudnn::of(library, described(library, capability), capability);
        let grouped = grouped(Pass::Forward);
        let long = AttentionShape { num_sequences: 1, longest: 8192, ..grouped };
        for shape in [
            grouped,
            AttentionShape { is_windowed: false, ..grouped },
            AttentionShape { dtype: DType::F16, head_dim: 96, ..grouped },
            AttentionShape { num_kv_heads: 10, head_dim: 128, ..grouped },
            AttentionShape { num_heads: 32, num_kv_heads: 8, head_dim: 128, ..long },
            AttentionShape { head_dim: 256, ..long },
            AttentionShape { num_sequences: 1024, is_windowed: false, ..grouped },
        ] {
            let plan = cudnn.plan(&shape, || ());
            let plan = plan.unwrap_or_else(|| panic!("{capability:?} {shape:?}: {}", cudnn.name()));
            assert!(plan.workspace_bytes <= 1 << 20, "{shape:?}: {plan:?}");
            if shape.head_dim <= 128 {
                let shape = AttentionShape { pass: Pass::Backward, ..shape };
                let plan = cudnn.plan(&shape, || ()).map(|plan| plan.workspace_bytes);
                let rows = shape.num_sequences * shape.longest.next_power_of_two();
                let most = match capability {
                    (9, 0) => 0,
                    _ => 8 * rows * shape.num_heads * shape.head_dim,
                };
                let fits = plan.is_some_and(|bytes| bytes <= most + (1 << 20));
                assert!(fits, "{capability:?} {shape:?}: {plan:?} {}", cudnn.name());
            }
        }
    }
}

/// What cuDNN says of a mistake reaches the user.
#[test]
fn a_real_library_gives_reasons() {
    let Some(library) = real() else { return };
    let error = Descriptor::new(library, -1).err().expect("there is no such kind");
    // SAFETY: a text that lives as long as the library.
    let success = unsafe { CStr::from_ptr((library.error_string)(0)) };
    assert_eq!(success, c"CUDNN_STATUS_SUCCESS");
    assert!(error.contains("CUDNN_STATUS_"), "{error}");
}
