//! For `cargo xtask live families`: the checks of `goldens.rs` on configurations that were drawn
//! just now, and files for PEFT and transformers to read.

use crate::fixture::{Golden, export, load};
use crate::goldens::{check_gradients, check_logits};
use crate::random_weights::write_checkpoint;
use hone_model::{Trained, adapter};
use hone_tensor::{AdapterId, DType, Device};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

#[test]
#[ignore = "`cargo xtask live families` draws the configurations"]
fn drawn_configurations() {
    let folder = std::env::var_os("HONE_LIVE_FAMILIES").expect("a folder that was drawn");
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<PathBuf> = entries.filter(|path| path.is_dir()).collect();
    folders.sort();
    assert!(!folders.is_empty());
    // All are tried: which fail together says more than the first.
    let passes = |folder: &PathBuf| catch_unwind(AssertUnwindSafe(|| check(folder))).is_ok();
    let failed: Vec<&PathBuf> = folders.iter().filter(|folder| !passes(folder)).collect();
    println!("{} configurations, {} failed: {failed:?}", folders.len(), failed.len());
    assert!(failed.is_empty());
}

fn check(folder: &Path) {
    let device = Device::cpu(2);
    let golden = Golden::read(folder);
    let written = |name: &str| {
        let path = folder.join("written").join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    };
    let whole = load(&golden.dir, &device, Some(DType::F32.into()), Trained::All);
    check_logits(&golden, &whole, &device, "logits");
    check_gradients(&golden, &whole, &device, "full_loss", "full_grad.");
    export(&whole, &device, &golden.dir, DType::F32, &written("full")).unwrap();
    for (name, logits) in [("adapter", "logits_lora"), ("adapter_fused", "logits_fused")] {
        if !folder.join(name).is_dir() {
            continue;
        }
        let dir = golden.dir.join(name);
        write_checkpoint(&folder.join(name), &dir);
        let mut adapted = golden.base(&device);
        let config = adapter::load(&dir, &mut adapted, &device, &mut |_| ()).unwrap();
        check_logits(&golden, &adapted, &device, logits);
        let id = AdapterId::default();
        adapter::save(&written(name), &adapted, &device, id, &config, "base").unwrap();
        if name == "adapter" {
            check_gradients(&golden, &adapted, &device, "loss", "grad.");
            export(&adapted, &device, &golden.dir, DType::F32, &written("merged")).unwrap();
        }
    }
}
