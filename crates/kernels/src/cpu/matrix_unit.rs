//! Whether AMX can be used, and if not, why.

use std::fmt;

/// Why a process cannot use AMX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MissingAmx {
    /// The processor has none.
    Processor,
    /// Processors of this model have it; the hypervisor does not pass it on.
    Hypervisor,
    /// AVX-512 with BF16 and VNNI, which packs what AMX multiplies, is not there.
    Vectors,
    /// The kernel does not save its registers when it switches threads.
    Kernel,
    /// The kernel does not permit this process to use it; the number of the error.
    Permission(i32),
}

impl fmt::Display for MissingAmx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// What the kernel says if a thread's signal stack has no room for the registers.
        const ENOSPC: i32 = 28;
        match self {
            Self::Processor => f.write_str("the processor has no AMX"),
            Self::Hypervisor => {
                f.write_str("the processor has AMX, but its hypervisor does not pass it on")
            }
            Self::Vectors => f.write_str(
                "AMX needs AVX-512 with BF16 and VNNI beside it, which this machine lacks",
            ),
            Self::Kernel => {
                f.write_str("the kernel does not support AMX (Linux does from 5.16 on)")
            }
            Self::Permission(ENOSPC) => f.write_str(
                "the kernel does not permit AMX, as a signal stack of this process is too small",
            ),
            Self::Permission(error) => {
                let error = std::io::Error::from_raw_os_error(*error).kind();
                write!(
                    f,
                    "the kernel does not permit AMX to this process ({error}); it may be older \
                     than Linux 5.16, or a seccomp filter may forbid arch_prctl"
                )
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86_64::missing;

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use super::MissingAmx;
    use std::arch::asm;
    use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
    use std::sync::OnceLock;

    /// Why AMX is missing, if it is; asks the kernel for permission, once.
    pub(in super::super) fn missing() -> Option<MissingAmx> {
        static MISSING: OnceLock<Option<MissingAmx>> = OnceLock::new();
        *MISSING.get_or_init(|| {
            if !processor_has_it() {
                let is_hidden = is_virtual() && is_model_with_amx();
                let who = if is_hidden { MissingAmx::Hypervisor } else { MissingAmx::Processor };
                return Some(who);
            }
            // Only Linux is asked for the permission like this.
            if !cfg!(target_os = "linux") || !kernel_saves_it() {
                return Some(MissingAmx::Kernel);
            }
            request_permission().err().map(MissingAmx::Permission)
        })
    }

    /// AMX-TILE, AMX-BF16 and AMX-INT8.
    fn processor_has_it() -> bool {
        const BITS: u32 = 1 << 22 | 1 << 24 | 1 << 25;
        __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & BITS == BITS
    }

    /// Whether the processor tells of a hypervisor.
    fn is_virtual() -> bool {
        __cpuid(1).ecx & 1 << 31 != 0
    }

    /// Whether this is a Sapphire, Emerald, Granite or Diamond Rapids, which all have AMX.
    fn is_model_with_amx() -> bool {
        let vendor = __cpuid(0);
        let is_intel = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).concat();
        let signature = __cpuid(1).eax;
        let family = (signature >> 8 & 0xf) + (signature >> 20 & 0xff);
        let model = signature >> 4 & 0xf | signature >> 12 & 0xf0;
        let is_known = match family {
            6 => [0x8f, 0xcf, 0xad, 0xae].contains(&model),
            19 => model == 1,
            _ => false,
        };
        is_intel == b"GenuineIntel" && is_known
    }

    /// Whether the state of tiles is enabled in XCR0.
    fn kernel_saves_it() -> bool {
        const OSXSAVE: u32 = 1 << 27;
        const TILES: u64 = 1 << 17 | 1 << 18;
        #[target_feature(enable = "xsave")]
        fn enabled_states() -> u64 {
            // SAFETY: the caller has checked that the operating system enables the instruction.
            unsafe { _xgetbv(0) }
        }
        // SAFETY: the processor has the instruction if the operating system enabled it.
        __cpuid(1).ecx & OSXSAVE != 0 && unsafe { enabled_states() } & TILES == TILES
    }

    /// Asks for the use of tile registers, for all threads of this process; else the error's
    /// number.
    fn request_permission() -> Result<(), i32> {
        const SYS_ARCH_PRCTL: i64 = 158;
        const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
        const XFEATURE_XTILEDATA: u64 = 18;
        let result: i64;
        // SAFETY: the call is Linux's, as the caller has checked, and has no effect on memory.
        unsafe {
            asm!(
                "syscall",
                inlateout("rax") SYS_ARCH_PRCTL => result,
                in("rdi") ARCH_REQ_XCOMP_PERM,
                in("rsi") XFEATURE_XTILEDATA,
                out("rcx") _,
                out("r11") _,
                options(nostack),
            );
        }
        if result == 0 { Ok(()) } else { Err(-result as i32) }
    }
}
