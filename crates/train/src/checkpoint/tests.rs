//! Whole or absent, whatever happens: damage of every kind, a kill at every point of writing, a
//! full disk.

use std::io;
use std::process::Command;

use tempfile::TempDir;

use super::*;

const FILES: [(&str, &[u8]); 3] =
    [("weights.bin", b"0123456789"), ("optimizer.bin", b"abcdefghij"), ("deep/random.json", b"{}")];

fn fill(dir: &Path) -> io::Result<()> {
    fs::create_dir(dir.join("deep"))?;
    FILES.iter().try_for_each(|(name, bytes)| fs::write(dir.join(name), bytes))
}

/// A root with the checkpoints of steps 10 and 20.
fn two_checkpoints() -> TempDir {
    let root = TempDir::new().unwrap();
    for step in [10, 20] {
        write(root.path(), step, fill).unwrap();
    }
    root
}

fn entries(root: &Path) -> Vec<String> {
    let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<_> = fs::read_dir(root).unwrap().map(name).collect();
    names.sort();
    names
}

fn newest_step(root: &Path) -> Option<u64> {
    newest_whole(root).unwrap().0.map(|whole| whole.step)
}

#[test]
fn what_is_written_verifies() {
    let root = two_checkpoints();
    let manifest = verify(&root.path().join("step-20")).unwrap();
    assert_eq!((manifest.step, manifest.files.len(), manifest.total_bytes()), (20, 3, 22));
    let digest = "84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882";
    assert_eq!(manifest.files["weights.bin"].sha256, digest);
    assert_eq!(entries(root.path()), ["step-10", "step-20"]);
    assert_eq!(newest_step(&root.path().join("absent")), None);
}

/// Damages the newest checkpoint: it must be rejected for that reason, and the one before taken.
#[track_caller]
fn detected(reason: &str, damage: impl FnOnce(&Path)) {
    let root = two_checkpoints();
    damage(&root.path().join("step-20"));
    let (whole, rejected) = newest_whole(root.path()).unwrap();
    assert_eq!(whole.unwrap().step, 10);
    assert_eq!(rejected.len(), 1);
    let message = rejected[0].reason.to_string();
    assert!(message.contains(reason) && message.contains("step-20"), "{message}");
}

#[test]
fn every_flipped_bit_is_detected() {
    for (name, bytes) in FILES {
        for bit in 0..8 * bytes.len() {
            detected(&format!("{name} is damaged"), |dir| {
                let mut damaged = bytes.to_vec();
                damaged[bit / 8] ^= 1 << (bit % 8);
                fs::write(dir.join(name), damaged).unwrap();
            });
        }
    }
}

#[test]
fn other_damage_is_detected() {
    detected("weights.bin has 9 bytes instead of 10", |dir| {
        fs::write(dir.join("weights.bin"), b"012345678").unwrap();
    });
    detected("optimizer.bin is damaged", |dir| {
        fs::write(dir.join("weights.bin"), FILES[1].1).unwrap();
        fs::write(dir.join("optimizer.bin"), FILES[0].1).unwrap();
    });
    detected("deep/random.json is missing", |dir| {
        fs::remove_file(dir.join("deep/random.json")).unwrap();
    });
    detected("stray.bin does not belong", |dir| fs::write(dir.join("stray.bin"), b"").unwrap());
    detected("manifest.json", |dir| fs::remove_file(dir.join("manifest.json")).unwrap());
    detected("manifest.json cannot be read", |dir| {
        let text = fs::read(dir.join("manifest.json")).unwrap();
        fs::write(dir.join("manifest.json"), &text[..text.len() / 2]).unwrap();
    });
    detected("manifest.json is of step 10", |dir| {
        let other = dir.with_file_name("step-10").join("manifest.json");
        fs::copy(other, dir.join("manifest.json")).unwrap();
    });
    detected("format version 9", |dir| {
        let text = fs::read_to_string(dir.join("manifest.json")).unwrap();
        let text = text.replace("\"format_version\": 1", "\"format_version\": 9");
        fs::write(dir.join("manifest.json"), text).unwrap();
    });
}

#[test]
fn a_whole_checkpoint_is_not_written_again_and_a_damaged_one_is() {
    let root = two_checkpoints();
    let refuse = |_: &Path| -> io::Result<()> { panic!("must not be called") };
    write(root.path(), 20, refuse).unwrap();
    fs::write(root.path().join("step-20/weights.bin"), b"9876543210").unwrap();
    write(root.path(), 20, fill).unwrap();
    assert_eq!(newest_step(root.path()), Some(20));
    assert_eq!(entries(root.path()), ["step-10", "step-20"]);
}

#[test]
fn pruning_keeps_the_newest_whole_ones() {
    let root = two_checkpoints();
    for step in [30, 100] {
        write(root.path(), step, fill).unwrap();
    }
    fs::remove_file(root.path().join("step-100/weights.bin")).unwrap();
    prune(root.path(), 100, 2).unwrap();
    assert_eq!(entries(root.path()), ["step-100", "step-20", "step-30"]);
    prune(root.path(), 100, 0).unwrap();
    assert_eq!(entries(root.path()), ["step-100", "step-30"]);
    assert_eq!(newest_step(root.path()), Some(30));
}

#[test]
fn a_failed_write_leaves_nothing() {
    let root = two_checkpoints();
    let fails = |dir: &Path| {
        fs::write(dir.join("half.bin"), b"01")?;
        Err(io::Error::other("no luck"))
    };
    let message = write(root.path(), 30, fails).unwrap_err().to_string();
    assert!(message.contains("step-30") && message.contains("no luck"), "{message}");
    let fails = |_: &Path| Err::<(), _>(io::Error::from(io::ErrorKind::StorageFull));
    let message = write(root.path(), 30, fails).unwrap_err().to_string();
    for part in ["disk full", "free at least", "step-20, is intact", "--resume"] {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
    assert_eq!(entries(root.path()), ["step-10", "step-20"]);
}

#[test]
fn a_single_file_is_replaced_whole() {
    let root = TempDir::new().unwrap();
    let path = root.path().join("run.toml");
    write_file_whole(&path, b"old").unwrap();
    write_file_whole(&path, b"new").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
    assert_eq!(entries(root.path()), ["run.toml"]);
    let message = write_file_whole(&root.path().join("no/run.toml"), b"").unwrap_err().to_string();
    assert!(message.contains("no/.tmp-run.toml"), "{message}");
}

/// The child of the tests below: does what they ask for in the root that they name.
#[test]
fn child() {
    let Ok(root) = std::env::var("HONE_TEST_CHECKPOINT_ROOT") else { return };
    let root = Path::new(&root);
    let result = write(root, 30, fill)
        .and_then(|_| prune(root, 30, 2))
        .and_then(|()| write_file_whole(&root.join("file"), b"new"));
    result.unwrap_or_else(|error| panic!("{error}"));
}

/// Runs [`child`] under a failpoint; whether it succeeded, and what it printed.
fn run_child(root: &Path, failpoint: &str) -> (bool, String) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "checkpoint::tests::child", "--nocapture"])
        .env("HONE_TEST_CHECKPOINT_ROOT", root)
        .env("HONE_FAILPOINT", failpoint)
        .output()
        .unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn failpoints() -> impl Iterator<Item = &'static str> {
    let ours = |name: &&&str| name.starts_with("checkpoint.") || name.starts_with("file.");
    crate::failpoint::ALL.iter().filter(ours).copied()
}

#[test]
fn a_kill_at_any_point_leaves_whole_or_absent() {
    for point in failpoints() {
        for nth in 1..=3 {
            let root = two_checkpoints();
            write_file_whole(&root.path().join("file"), b"old").unwrap();
            let (finished, _) = run_child(root.path(), &format!("{point}:{nth}"));
            assert!(!finished || nth > 1, "{point} was not reached");
            for name in entries(root.path()).iter().filter(|name| name.starts_with("step-")) {
                verify(&root.path().join(name)).unwrap_or_else(|e| panic!("{point}:{nth}: {e}"));
            }
            assert!(newest_step(root.path()) >= Some(20), "{point}:{nth}");
            let file = fs::read(root.path().join("file")).unwrap();
            assert!(file == b"old" || file == b"new", "{point}:{nth}");
            let (finished, message) = run_child(root.path(), "checkpoint.begin:99");
            assert!(finished, "{point}:{nth}: {message}");
            assert_eq!(newest_step(root.path()), Some(30), "{point}:{nth}");
            assert_eq!(fs::read(root.path().join("file")).unwrap(), b"new");
        }
    }
}

#[test]
fn a_full_disk_at_any_point_leaves_the_last_good_one() {
    for point in ["begin", "filled", "file_synced", "manifest_written", "directory_synced"] {
        let root = two_checkpoints();
        let (finished, message) = run_child(root.path(), &format!("checkpoint.{point}=enospc"));
        assert!(!finished, "{point}");
        let told = message.contains("disk full") && message.contains("step-20, is intact");
        assert!(told, "{point}: {message}");
        assert_eq!(entries(root.path()), ["step-10", "step-20"], "{point}");
    }
}

/// A small file system in memory, unmounted at the end.
struct Tmpfs(TempDir);

impl Tmpfs {
    fn mount(size: &str) -> Option<Tmpfs> {
        let dir = TempDir::new().ok()?;
        let options = format!("size={size}");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(dir.path());
        let mounted = mount.output().is_ok_and(|output| output.status.success());
        mounted.then(|| Tmpfs(dir))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).output();
    }
}

#[test]
fn a_disk_that_is_really_full() {
    let Some(disk) = Tmpfs::mount("256k") else {
        hone_tensor::testing::skip("mounting a small disk needs root");
        return;
    };
    let root = disk.0.path().join("checkpoints");
    let big = |dir: &Path| fs::write(dir.join("weights.bin"), vec![7; 100_000]);
    write(&root, 1, big).unwrap();
    write(&root, 2, big).unwrap();
    let message = write(&root, 3, big).unwrap_err().to_string();
    assert!(message.contains("disk full") && message.contains("step-2, is intact"), "{message}");
    assert_eq!(entries(&root), ["step-1", "step-2"]);
    assert_eq!(newest_step(&root), Some(2));
    let message = write_file_whole(&root.join("file"), &[0; 90_000]).unwrap_err().to_string();
    assert!(message.contains("disk full"), "{message}");
    fs::remove_dir_all(root.join("step-1")).unwrap();
    write(&root, 3, big).unwrap();
    assert_eq!(newest_step(&root), Some(3));
}

/// A result that is written again takes the former one away first; a kill in the midst of that
/// leaves it under another name, and nothing where it was.
#[test]
fn what_a_killed_publication_left_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let [partial, result, left] =
        [".adapter-partial", "adapter", ".trash-adapter"].map(|name| dir.path().join(name));
    for made in [&partial, &left] {
        fs::create_dir(made).unwrap();
        fs::write(made.join("weights"), "w").unwrap();
    }
    publish(&partial, &result).unwrap();
    assert!(result.join("weights").exists() && !partial.exists() && !left.exists());
}
