//! Types that are chosen for a size or a divergence.

use crate::calibration::{room, stories, windows};
use hone_compress::{Columns, Goal, Meter, PlanError, Planner, Sensitivity};
use hone_model::{GgufForm, Pass};
use hone_tensor::{Compute, Device};

/// Sizes are kept, divergences too, and more bytes lose less; whatever the threads.
#[test]
fn goals_are_reached() {
    let device = Device::cpu(2);
    let Some((model, texts)) = stories(&device) else { return };
    let form = GgufForm::of(&model, &texts).unwrap();
    let pass = Pass { device: &device, model: &model, compute: Compute::F32 };
    let (text, other) = (windows(pass, 6, 0), windows(pass, 2, 100));
    let columns = Columns::default();
    let reached = |device: &Device, goal: Goal| {
        let pass = Pass { device, ..pass };
        let sensitivity = Sensitivity::measure(pass, &form, (&text, room()), &mut || ()).unwrap();
        let mut planner =
            Planner::new(&sensitivity, &form, (&columns, room()), &mut || ()).unwrap();
        let meter = Meter::new(pass, &other).unwrap();
        let found = planner.reach(goal, &meter, &mut || ())?;
        let kl = meter.measure(&planner.as_allocated(&found).unwrap()).unwrap().kl;
        Ok((found, kl))
    };
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
    assert_eq!((first, kl.to_bits()), (again, same.to_bits()));
    let (found, kl) = reached(&device, Goal::Kl(sizes[1].1)).unwrap();
    assert!(kl <= sizes[1].1 && size(&found) < sizes[2].0, "{kl} {}", size(&found));
    let too_small: Result<_, PlanError> = reached(&device, Goal::Bytes(1000));
    let error = too_small.err().unwrap().to_string();
    assert!(error.starts_with("1000 bytes are fewer than") && error.contains("bits per weight"));
    let too_exact: Result<_, PlanError> = reached(&device, Goal::Kl(1e-12));
    assert!(matches!(too_exact, Err(PlanError::TooExact { .. })));
}
