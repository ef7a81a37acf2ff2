//! Tests of the disk that `power` plays, with a small program that writes and dies.

use super::*;

/// A directory in which the program has run, and not yet lost anything.
struct Disk {
    dir: tempfile::TempDir,
    power: Power,
}

impl Disk {
    /// Begins with these files, synced.
    fn new(files: &[(&str, &str)]) -> Disk {
        let dir = tempfile::tempdir().expect("a directory");
        let data = dir.path().join("data");
        fs::create_dir(&data).expect("a new directory");
        for (name, text) in files {
            fs::write(data.join(name), text).expect("written");
        }
        let power = Power::new(dir.path(), &data);
        Disk { dir, power }
    }

    /// Runs the lines of a script, up to the kill at its end.
    fn run(&self, script: &str) {
        static BUILT: OnceLock<PathBuf> = OnceLock::new();
        let program = BUILT.get_or_init(|| compile("unsynced_writer.c", "unsynced_writer", &[]));
        let lines = self.dir.path().join("script");
        fs::write(&lines, script.replace("; ", "\n")).expect("written");
        let mut command = Command::new(program);
        let pairs = self.power.environment();
        command.envs(pairs.iter().map(|pair| pair.split_once('=').expect("an assignment")));
        command.current_dir(self.dir.path().join("data"));
        let status = command.stdin(File::open(lines).expect("readable")).status().expect("it runs");
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(status.signal(), Some(9), "{script}");
    }

    /// The files and their bytes, with `/` after the names of directories.
    fn files(&self) -> BTreeMap<String, String> {
        fn list(dir: &Path, prefix: &str, all: &mut BTreeMap<String, String>) {
            for entry in fs::read_dir(dir).expect("a directory") {
                let path = entry.expect("readable").path();
                let name = prefix.to_owned() + path.file_name().unwrap().to_str().unwrap();
                if path.is_dir() {
                    list(&path, &format!("{name}/"), all);
                    all.insert(name + "/", String::new());
                } else {
                    let bytes = fs::read(&path).expect("readable");
                    all.insert(name, String::from_utf8_lossy(&bytes).into_owned());
                }
            }
        }
        let mut all = BTreeMap::new();
        list(&self.dir.path().join("data"), "", &mut all);
        all
    }
}

/// All states that the disk is in after the script and a loss of power, over many draws.
fn states(files: &[(&str, &str)], script: &str) -> Vec<BTreeMap<String, String>> {
    let mut all = Vec::new();
    for seed in 0..40 {
        let disk = Disk::new(files);
        disk.run(script);
        disk.power.take_back(&mut Random::new(seed));
        let state = disk.files();
        if !all.contains(&state) {
            all.push(state);
        }
    }
    all
}

/// The script leaves exactly these states, each written as `name=bytes` and so on.
#[track_caller]
fn leaves(files: &[(&str, &str)], script: &str, expected: &[&str]) {
    let shown = |state: &BTreeMap<String, String>| {
        let all: Vec<String> = state.iter().map(|(name, text)| format!("{name}={text}")).collect();
        all.join(" ")
    };
    let mut came: Vec<String> = states(files, script).iter().map(shown).collect();
    came.sort();
    let mut expected: Vec<String> = expected.iter().map(|text| text.to_string()).collect();
    expected.sort();
    assert_eq!(came, expected, "{script}");
}

#[test]
fn what_is_synced_stays() {
    leaves(&[], "write a one; sync a", &["a=one"]);
    leaves(&[], "write a one; vector a two; sync a", &["a=onetwo"]);
    leaves(&[("a", "old")], "put a 0 new; sync a", &["a=new"]);
    leaves(&[("a", "long")], "cut a 2; sync a", &["a=lo"]);
    leaves(&[("a", "x")], "rename a b; syncdir .", &["b=x"]);
    leaves(&[("a", "x")], "unlink a; syncdir .", &[""]);
    leaves(&[], "mkdir d; write d/a x; sync d/a", &["d/= d/a=x"]);
}

#[test]
fn what_is_not_synced_may_be_gone() {
    leaves(&[("a", "old")], "put a 0 new", &["a=old", "a=new"]);
    leaves(&[("a", "old")], "write a er", &["a=old", "a=older", "a=old\0\0"]);
    leaves(&[("a", "long")], "cut a 2", &["a=lo", "a=long"]);
    leaves(&[("a", "x")], "again a", &["a=", "a=x"]);
    leaves(&[("a", "x")], "grow a 3", &["a=x", "a=x\0\0"]);
    leaves(&[("a", "x")], "unlink a", &["", "a=x"]);
    leaves(&[("a", "x"), ("b", "y")], "rename a b", &["a=x b=y", "b=x"]);
    leaves(&[], "mkdir d", &["", "d/="]);
}

#[test]
fn writes_go_in_order() {
    let all = ["a=x", "a=xy", "a=xyz"];
    let mut zeroed = all.to_vec();
    zeroed.extend(["a=x\0", "a=x\0\0"]);
    leaves(&[], "write a x; sync a; vector a y; write a z", &zeroed);
    // What was written before the sync stays, what came after may not, in another file or not.
    leaves(&[], "write a x; write b y; sync a", &["a=x", "a=x b=", "a=x b=y", "a=x b=\0"]);
}

#[test]
fn a_new_name_stays_with_its_file() {
    leaves(&[("a", "x"), ("b", "y")], "rename a b; sync b", &["b=x"]);
    leaves(&[("a", "x")], "rename a b; rename b c", &["a=x", "b=x", "c=x"]);
    let replaced = "write t new; sync t; rename t a";
    leaves(&[("a", "old")], replaced, &["a=old t=new", "a=new"]);
    leaves(&[("a", "old")], &format!("{replaced}; syncdir ."), &["a=new"]);
}

#[test]
fn a_torn_write_is_torn_at_a_sector() {
    let script = format!("write a {}; sync a; write a {}", "x".repeat(700), "y".repeat(3000));
    let states = states(&[], &script);
    let sizes: Vec<usize> = states.iter().map(|state| state["a"].len()).collect();
    assert!(sizes.iter().all(|n| [700, 3700].contains(n) || n % 512 == 0), "{sizes:?}");
    assert!(sizes.iter().any(|n| ![700, 3700].contains(n)), "some are torn: {sizes:?}");
    for state in &states {
        assert!(state["a"].starts_with(&"x".repeat(700)), "what was synced stays");
        assert!(state["a"][700..].chars().all(|c| c == 'y' || c == '\0'), "{state:?}");
    }
}

#[test]
#[should_panic(expected = "does not follow a mapping that writes")]
fn what_is_not_followed_is_told() {
    let disk = Disk::new(&[("a", "x")]);
    disk.run("mapped a");
    disk.power.take_back(&mut Random::new(1));
}

#[test]
fn a_second_run_begins_with_what_was_left() {
    let disk = Disk::new(&[]);
    disk.run("write a one; sync a");
    disk.power.take_back(&mut Random::new(1));
    disk.run("write b two; sync b");
    disk.power.take_back(&mut Random::new(2));
    assert_eq!(disk.files().len(), 2);
}
