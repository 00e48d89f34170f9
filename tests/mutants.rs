//! Faults that are planted to see whether the tests notice.
//!
//! Each is one change to the source. By default it is only checked that all of
//! them still apply. To plant each in a copy of the crate, and run the tests
//! that have to fail then:
//!
//! ```text
//! DCHAN_MUTANTS=1 cargo test --test mutants -- --nocapture
//! ```
//!
//! `DCHAN_MUTANTS=NAME` plants the one of that name.

// A test that cannot go on panics.
#![allow(clippy::unwrap_used)]

use std::{
    env, fs, io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// A fault, and the tests that have to notice.
struct Mutant {
    name: &'static str,
    file: &'static str,
    /// What stands there, once.
    sound: &'static str,
    faulty: &'static str,
    /// Arguments to `cargo test`.
    caught_by: &'static [&'static str],
}

const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "resend-after-unknown",
        file: "src/mailbox/lane.rs",
        sound: "self.under_way.split_off(&unsent)",
        faulty: "self.under_way.split_off(&(unsent * 0))",
        caught_by: &["--test", "crash"],
    },
    Mutant {
        name: "skip-the-boot-check",
        file: "src/server.rs",
        sound: "open.target_boot != self.me.boot",
        faulty: "open.target_boot == 0",
        caught_by: &["--test", "protocol"],
    },
    Mutant {
        name: "confirm-before-handing-over",
        file: "src/inbox/mod.rs",
        sound: "        state.backlog.extend(messages);",
        faulty: "        state.backlog.extend(messages.inspect(|arrived| {
            arrived.origin.accepted(arrived.sequence)
        }));",
        caught_by: &["--test", "receiving"],
    },
    Mutant {
        name: "credit-never-returned",
        file: "src/link/incoming.rs",
        sound: "            Verdict::Accepted => (verdict::Kind::Accepted, String::new()),",
        faulty: "            Verdict::Accepted => return,",
        caught_by: &["--test", "sending", "a_reader_that_takes_nothing"],
    },
    Mutant {
        name: "credit-returned-twice",
        file: "src/mailbox/lane.rs",
        sound: "self.under_way.len() < self.window as usize",
        faulty: "self.under_way.len() < 2 * self.window as usize",
        caught_by: &["--test", "sending", "a_reader_that_takes_nothing"],
    },
    Mutant {
        name: "drop-on-refusal",
        file: "src/mailbox/feedback.rs",
        sound: "                Verdict::Returned => {
                    for (_, parcel) in settled {",
        faulty: "                Verdict::Returned => {
                    for (_, parcel) in settled.into_iter().take(0) {",
        caught_by: &["--test", "receiving"],
    },
    Mutant {
        name: "forget-to-drain",
        file: "src/cluster/node.rs",
        sound: "let handling = node.inbox.close();",
        faulty: "let handling = Vec::<TaskTracker>::new();",
        caught_by: &["--test", "ending"],
    },
    Mutant {
        name: "do-not-wait-for-handlers",
        file: "src/inbox/recipient.rs",
        sound: "                if let Ok(result) = result.await {
                    reply_to.send(result);
                }
                drop(handling);",
        faulty: "                drop(handling);
                if let Ok(result) = result.await {
                    reply_to.send(result);
                }",
        caught_by: &["--test", "receiving"],
    },
    Mutant {
        name: "reorder-on-re-route",
        file: "src/mailbox/outbox.rs",
        sound: "self.waiting.insert(place, parcel);",
        faulty: "let _ = place; self.waiting.push_back(parcel);",
        caught_by: &["--test", "sending", "what_is_returned"],
    },
    Mutant {
        name: "take-turns-no-more",
        file: "src/mailbox/outbox.rs",
        sound: "        state.turn = index + 1;\n",
        faulty: "        state.turn = index;\n",
        caught_by: &["--test", "receiving"],
    },
    Mutant {
        name: "offer-again-after-the-deadline",
        file: "src/mailbox/outbox.rs",
        sound: "if parcel.expires(default) <= Instant::now() {",
        faulty: "if parcel.failed {",
        caught_by: &["--test", "sending", "after_its_deadline"],
    },
    Mutant {
        name: "cut-links-to-who-leaves",
        file: "src/link/outgoing.rs",
        sound: "                link.finish();",
        faulty: "                link.stop.cancel();",
        caught_by: &["--test", "ending", "a_reply_on_its_way"],
    },
    Mutant {
        name: "stand-without-asking",
        file: "src/raft/election.rs",
        sound: "if !is_quorum(&configs, &granted) {",
        faulty: "if configs.is_empty() {",
        caught_by: &["--test", "processes", "without_a_majority"],
    },
    Mutant {
        name: "propose-without-a-quorum",
        file: "src/raft/submit.rs",
        sound: "if !self.quorum {",
        faulty: "if false {",
        caught_by: &["--lib", "raft::submit"],
    },
    Mutant {
        name: "never-evict",
        file: "src/raft/clocks.rs",
        sound: "answered.elapsed() >= EVICT_AFTER",
        faulty: "answered.elapsed() >= EVICT_AFTER * 1000",
        caught_by: &["--test", "processes", "a_node_that_dies"],
    },
    Mutant {
        name: "do-not-come-back",
        file: "src/raft/propose.rs",
        sound: "if !is_up || self.may_be_evicted() {",
        faulty: "if !is_up {",
        caught_by: &["--test", "processes", "silent_for_too_long"],
    },
    Mutant {
        name: "evict-without-comparing-boots",
        file: "src/view.rs",
        sound: "                if self.is_up(*node, *boot) {
                    self.remove(*node);",
        faulty: "                if *boot != u64::MAX {
                    self.remove(*node);",
        caught_by: &["--lib", "view"],
    },
    Mutant {
        name: "forget-what-was-broadcast",
        file: "src/broadcast/inflow.rs",
        sound: "            Some(Known::Settled(outcome)) => return Some(*outcome),",
        faulty: "            Some(Known::Settled(outcome)) => {
                self.order.take_in(number, 0, letter.clone());
                return Some(*outcome);
            }",
        caught_by: &["--test", "broadcast", "copies_that_come_twice"],
    },
    Mutant {
        name: "hand-over-out-of-order",
        file: "src/broadcast/order.rs",
        sound: "if previous > self.last && previous >= self.settled {",
        faulty: "if previous > u64::MAX - 1 && previous >= self.settled {",
        caught_by: &["--test", "broadcast", "copies_that_come_twice"],
    },
    Mutant {
        name: "forget-the-take-over",
        file: "src/broadcast/relay.rs",
        sound: "                self.plan(&mut state, id, copy.part);",
        faulty: "                self.plan(&mut state, id, copy.part.into_iter().take(0).collect());",
        caught_by: &["--test", "broadcast", "who_lives"],
    },
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn every_planted_fault_is_noticed() {
    for mutant in MUTANTS {
        let source = fs::read_to_string(root().join(mutant.file)).unwrap();
        let found = source.matches(mutant.sound).count();
        assert_eq!(found, 1, "{} does not apply any more", mutant.name);
    }
    let Ok(wanted) = env::var("DCHAN_MUTANTS") else {
        println!(
            "{} faults apply; DCHAN_MUTANTS=1 plants them",
            MUTANTS.len()
        );
        return;
    };
    let copy = tempfile::tempdir().unwrap();
    for name in [
        "Cargo.toml",
        "Cargo.lock",
        "README.md",
        "src",
        "tests",
        "examples",
        "proto",
    ] {
        copy_all(&root().join(name), &copy.path().join(name)).unwrap();
    }
    let chosen: Vec<&Mutant> = MUTANTS
        .iter()
        .filter(|mutant| wanted == "1" || wanted == mutant.name)
        .collect();
    let mut missed = Vec::new();
    for mutant in &chosen {
        let (caught, how) = plant(mutant, copy.path());
        println!("{:<28} {how}", mutant.name);
        if !caught {
            missed.push(mutant.name);
        }
    }
    println!(
        "planted={} caught={}",
        chosen.len(),
        chosen.len() - missed.len()
    );
    assert!(missed.is_empty(), "not noticed: {missed:?}");
}

/// Whether the tests pass without the fault and fail with it.
fn plant(mutant: &Mutant, copy: &Path) -> (bool, String) {
    let file = copy.join(mutant.file);
    let source = fs::read_to_string(&file).unwrap();
    let begin = Instant::now();
    if !passes(copy, mutant.caught_by) {
        return (false, "its tests fail without it".to_owned());
    }
    fs::write(&file, source.replace(mutant.sound, mutant.faulty)).unwrap();
    let builds = passes(copy, &[mutant.caught_by, &["--no-run"]].concat());
    let passed = builds && passes(copy, mutant.caught_by);
    fs::write(&file, source).unwrap();
    let seconds = begin.elapsed().as_secs();
    match (builds, passed) {
        (false, _) => (false, "does not build".to_owned()),
        (true, true) => (
            false,
            format!("NOT noticed by {:?}, {seconds} s", mutant.caught_by),
        ),
        (true, false) => (
            true,
            format!("noticed by {:?}, {seconds} s", mutant.caught_by),
        ),
    }
}

/// Runs `cargo test` in the copy. Tests that hang fail, and so does a run of
/// none.
fn passes(copy: &Path, arguments: &[&str]) -> bool {
    const PATIENCE: Duration = Duration::from_secs(300);
    let target: PathBuf = env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| root().join("target"), PathBuf::from)
        .join("mutants");
    let output = copy.join("output");
    let mut child = Command::new(env!("CARGO"))
        .args(["test", "--target-dir"])
        .arg(target)
        .args(arguments)
        .current_dir(copy)
        .env_remove("DCHAN_MUTANTS")
        .stdout(fs::File::create(&output).unwrap())
        .stderr(Stdio::null())
        // With all that it starts.
        .process_group(0)
        .spawn()
        .unwrap();
    let begin = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            let output = fs::read_to_string(output).unwrap();
            let tested = output.contains(" ... ok") || arguments.contains(&"--no-run");
            return status.success() && tested;
        }
        if begin.elapsed() > PATIENCE {
            let group = format!("-{}", child.id());
            let killed = Command::new("kill").args(["-9", "--", &group]).status();
            assert!(killed.unwrap().success());
            child.wait().unwrap();
            return false;
        }
        thread::sleep(Duration::from_millis(100));
    }
}

fn copy_all(from: &Path, to: &Path) -> io::Result<()> {
    if !from.is_dir() {
        fs::copy(from, to)?;
        return Ok(());
    }
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        copy_all(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}
