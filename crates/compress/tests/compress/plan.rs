//! Types that are chosen for a size or a divergence.

use crate::calibration::{room, stories, windows};
use hone_compress::{Columns, Goal, Ledger, Meter, PlanError, Planner, Sensitivity};
use hone_model::{GgufForm, Pass};
use hone_tensor::{Compute, Device};
use std::cell::RefCell;

/// Sizes are kept, divergences too, and more bytes lose less; whatever the threads.
#[test]
fn goals_are_reached() {
    let device = Device::cpu(2);
    let Some((model, texts)) = stories(&device) else { return };
    let form = GgufForm::of(&model, &texts).unwrap();
    let pass = Pass { device: &device, model: &model, compute: Compute::F32 };
    let (text, other) = (windows(pass, 6, 0), windows(pass, 2, 100));
    let columns = Columns::default();
    let ledger = RefCell::new(Vec::new());
    let reached_from = |device: &Device, goal: Goal, known: Vec<f64>| {
        let pass = Pass { device, ..pass };
        let mut keep = |numbers: &[f64]| *ledger.borrow_mut() = numbers.to_vec();
        let ledger = &mut Ledger::new(known, &mut keep);
        let mut measure = || Sensitivity::measure(pass, &form, (&text, room()), &mut || ());
        let columns = (&columns, room());
        let mut planner =
            Planner::new((pass, &form), columns, &mut measure, ledger, &mut || ()).unwrap();
        let meter = Meter::new(pass, &other).unwrap();
        let found = planner.reach(goal, (&meter, None), ledger, &mut || ())?;
        let kl = meter.measure(&planner.as_allocated(&found).unwrap()).unwrap().kl;
        Ok((found, kl))
    };
    let reached = |device: &Device, goal: Goal| reached_from(device, goal, Vec::new());
    let size = |of: &hone_compress::Allocation| form.num_bytes(&of.storages).unwrap();
    let mut last = f64::INFINITY;
    let mut sizes = Vec::new();
    for bytes in [290_000, 330_000, 400_000] {
        let (found, kl) = reached(&device, Goal::Bytes(bytes)).unwrap();
        assert!(size(&found) <= bytes && size(&found) > bytes - bytes / 20, "{}", size(&found));
        assert!(kl < last, "{kl} after {last}");
        assert!((found.shares.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        sizes.push((size(&found), kl));
        last = kl;
    }
    let (first, kl) = reached(&device, Goal::Bytes(290_000)).unwrap();
    let (again, same) = reached(&Device::cpu(1), Goal::Bytes(290_000)).unwrap();
    assert_eq!((&first, kl.to_bits()), (&again, same.to_bits()));
    // So it ends from what another process had found, and finds the rest only.
    let all = ledger.take();
    for part in [all.len() / 2, all.len() - 3] {
        let known = all[..part].to_vec();
        let (again, _) = reached_from(&device, Goal::Bytes(290_000), known).unwrap();
        assert_eq!((&first, &all), (&again, &ledger.take()));
    }
    let (found, kl) = reached(&device, Goal::Kl(sizes[1].1)).unwrap();
    assert!(kl <= sizes[1].1 && size(&found) < sizes[2].0, "{kl} {}", size(&found));
    let too_small: Result<_, PlanError> = reached(&device, Goal::Bytes(1000));
    let error = too_small.err().unwrap().to_string();
    assert!(error.starts_with("1000 bytes are fewer than") && error.contains("bits per weight"));
    let too_exact: Result<_, PlanError> = reached(&device, Goal::Kl(1e-12));
    let Err(PlanError::TooExact { asked, least }) = too_exact else { panic!("8 bits reach it") };
    assert!(asked == 1e-12 && reached(&device, Goal::Kl(1.001 * least)).is_ok(), "{least}");
}
