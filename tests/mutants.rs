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
//! `DCHAN_MUTANTS=NAME,NAME` plants those of these names.
//!
//! Those that only show under many faults have to be found by the simulation, in
//! one of its first 200 seeds, which must pass without them.

// A test that cannot go on panics.
#![allow(clippy::unwrap_used)]

use std::{
    env, fs,
    io::{self, Read, Seek},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

/// Stands for the simulation, one seed after the other.
const SIMULATION: &[&str] = &["--release", "--test", "simulation"];
/// Within so many seeds a fault has to be found.
const SEEDS: u64 = 200;

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
        sound: "let first_unsent = self.unsent;",
        faulty: "let first_unsent = self.unsent * 0;",
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
        file: "src/inbox/channel.rs",
        sound: "            content: Content::Batch(batch),",
        faulty: "            content: {
                for sequence in (first..).take(batch.len()) {
                    lane.settle(sequence, crate::link::Verdict::Accepted);
                }
                Content::Batch(batch)
            },",
        caught_by: &["--test", "receiving"],
    },
    Mutant {
        name: "lose-what-is-in-hand",
        file: "src/inbox/channel.rs",
        sound: "            self.seat.channel.put_back(self.seat.id, left);",
        faulty: "            drop(left);",
        caught_by: &["--test", "receiving", "what_an_actor_has_not_handled"],
    },
    Mutant {
        name: "return-nothing-of-what-was-gathered",
        file: "src/mailbox/lane.rs",
        sound: "            entry.body = self.gathering.get(entry.position);",
        faulty: "",
        caught_by: &["--test", "receiving", "what_an_actor_has_not_handled"],
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
        sound: "self.under_way.count < self.window as usize",
        faulty: "self.under_way.count < 2 * self.window as usize",
        caught_by: &["--test", "sending", "a_reader_that_takes_nothing"],
    },
    Mutant {
        name: "drop-on-refusal",
        file: "src/mailbox/feedback.rs",
        sound: "for parcel in returned {",
        faulty: "for parcel in returned.into_iter().take(0) {",
        caught_by: &["--test", "receiving"],
    },
    Mutant {
        name: "offer-again-what-has-failed",
        file: "src/mailbox/outbox.rs",
        sound: "        if record.failed {
            return state.account.forget(Some(parcel.body));
        }
",
        faulty: "",
        caught_by: &["--test", "sending", "a_message_that_has_failed"],
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
        sound: "send_fresh(record, encoded);
                    state.turn = lane + 1;",
        faulty: "send_fresh(record, encoded);
                    state.turn = lane;",
        caught_by: &["--test", "receiving"],
    },
    Mutant {
        name: "offer-again-after-the-deadline",
        file: "src/mailbox/outbox.rs",
        sound: "if record.expires(default) <= Instant::now() {",
        faulty: "if record.failed {",
        caught_by: &["--test", "sending", "after_its_deadline"],
    },
    Mutant {
        name: "forget-who-receives-no-more",
        file: "src/inbox/channel.rs",
        sound: "                state.leaving.push(slot.handling);",
        faulty: "                drop(slot.handling);",
        caught_by: &["--test", "ending", "a_shutdown_waits_for_the_handlers"],
    },
    Mutant {
        name: "leave-before-replies-are-read",
        file: "src/cluster/node.rs",
        sound: "        let _ = timeout_at(deadline, self.replying.wait()).await;\n",
        faulty: "",
        caught_by: &["--test", "ending", "a_reply_on_its_way"],
    },
    Mutant {
        name: "cut-links-to-who-leaves",
        file: "src/link/outgoing.rs",
        sound: "                link.finish();",
        faulty: "                link.stop.cancel();",
        caught_by: &["--test", "ending", "what_is_on_its_way"],
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
        caught_by: SIMULATION,
    },
    Mutant {
        name: "heartbeats-too-rare",
        file: "src/raft/mod.rs",
        sound: "ctx.run_interval(HEARTBEAT, |actor, ctx| {",
        faulty: "ctx.run_interval(HEARTBEAT * 3 / 2, |actor, ctx| {",
        caught_by: SIMULATION,
    },
    Mutant {
        name: "evict-without-comparing-boots",
        file: "src/view.rs",
        sound: "                if self.is_up(*node, *boot) {
                    self.remove(*node);",
        faulty: "                if *boot != u64::MAX {
                    self.remove(*node);",
        caught_by: SIMULATION,
    },
    Mutant {
        name: "unregister-what-a-later-boot-registered",
        file: "src/view.rs",
        sound: "                if !self.is_up(*node, *boot) {
                    return;
                }
                for namespace in unregister {
                    self.unregister(namespace, *node);
                }",
        faulty: "                for namespace in unregister {
                    self.unregister(namespace, *node);
                }
                if !self.is_up(*node, *boot) {
                    return;
                }",
        caught_by: SIMULATION,
    },
    Mutant {
        name: "patience-drawn-once",
        file: "src/raft/election.rs",
        sound: "        *self = Self::new();",
        faulty: "        (self.since, self.asking) = (Instant::now(), false);",
        caught_by: &["--lib", "raft::election"],
    },
    Mutant {
        name: "append-without-a-sync",
        file: "src/raft/store.rs",
        sound: "        self.write(Durability::Immediate, move |transaction| {
            let mut log = transaction.open_table(LOG)?;
            for",
        faulty: "        self.write(Durability::None, move |transaction| {
            let mut log = transaction.open_table(LOG)?;
            for",
        caught_by: SIMULATION,
    },
    Mutant {
        name: "vote-without-a-sync",
        file: "src/raft/store.rs",
        sound: "        let vote = *vote;
        self.write(Durability::Immediate,",
        faulty: "        let vote = *vote;
        self.write(Durability::None,",
        caught_by: SIMULATION,
    },
    Mutant {
        name: "apply-twice",
        file: "src/raft/state_machine.rs",
        sound: "        last: meta.last_log_id,",
        faulty: "        last: meta.last_log_id.map(|mut last| {
            last.index -= 9;
            last
        }),",
        caught_by: SIMULATION,
    },
    Mutant {
        name: "apply-nothing-after-a-restart",
        file: "src/raft/state_machine.rs",
        sound: "Ok((self.applied.last, ",
        faulty: "Ok((self.store.last_log_id().ok().flatten(), ",
        caught_by: SIMULATION,
    },
    Mutant {
        name: "forget-the-tail-of-a-snapshot",
        file: "src/raft/state_machine.rs",
        sound: "    let Content { view } = rmp_serde::from_slice(content)?;",
        faulty: "    let Content { mut view } = rmp_serde::from_slice(content)?;
            Arc::make_mut(&mut view).receivers.pop_last();",
        caught_by: SIMULATION,
    },
    Mutant {
        name: "promote-before-caught-up",
        file: "src/raft/membership.rs",
        sound: "matched.is_some_and(|id| id.index + CAUGHT_UP >= last)",
        faulty: "matched.is_none_or(|id| id.index + CAUGHT_UP <= last + CAUGHT_UP)",
        caught_by: SIMULATION,
    },
    Mutant {
        name: "drop-a-majority-of-voters",
        file: "src/raft/policy.rs",
        sound: "2 * stay > picture.voters.len() ||",
        faulty: "2 * stay > 0 ||",
        caught_by: SIMULATION,
    },
    Mutant {
        name: "keep-what-earlier-boots-registered",
        file: "src/view.rs",
        sound: "        if !self.is_up(node, boot) {
            self.remove(node);",
        faulty: "        if boot == u64::MAX {
            self.remove(node);",
        caught_by: SIMULATION,
    },
    Mutant {
        name: "come-back-in-an-earlier-boot",
        file: "src/view.rs",
        sound: "if self.is_past(node, boot) {",
        faulty: "if self.nodes.get(&node).is_some_and(|up| up.boot > boot) {",
        caught_by: &["--lib", "view::"],
    },
    Mutant {
        name: "ask-one-node-behind-a-name",
        file: "src/raft/submit.rs",
        sound: "contacts.extend(behind_names.into_iter().flatten());",
        faulty: "drop(behind_names); contacts.extend(self.contacts.clone());",
        caught_by: &["--test", "forming"],
    },
    Mutant {
        name: "register-for-an-earlier-boot",
        file: "src/view.rs",
        sound: "                if !self.is_up(*node, *boot) {
                    return;",
        faulty: "                if *boot == u64::MAX {
                    return;",
        caught_by: SIMULATION,
    },
    Mutant {
        name: "vote-despite-a-leader",
        file: "src/raft/election.rs",
        sound: "heard.elapsed() > LEASE)",
        faulty: "heard.elapsed() < LEASE * 9999)",
        caught_by: SIMULATION,
    },
    Mutant {
        name: "two-leaders-a-term",
        file: "Cargo.toml",
        sound: "\"single-term-leader\", ",
        faulty: "",
        caught_by: SIMULATION,
    },
    Mutant {
        name: "form-without-asking-all",
        file: "src/raft/formation.rs",
        sound: "            if silent.is_empty()",
        faulty: "            if silent.len() < usize::MAX",
        caught_by: SIMULATION,
    },
    Mutant {
        name: "resend-what-may-have-arrived",
        file: "src/mailbox/lane.rs",
        sound: "let first_unsent = self.unsent;",
        faulty: "let first_unsent = self.unsent * 0;",
        caught_by: SIMULATION,
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
        "benches",
        "proto",
    ] {
        copy_all(&root().join(name), &copy.path().join(name)).unwrap();
    }
    let chosen: Vec<&Mutant> = MUTANTS
        .iter()
        .filter(|mutant| wanted == "1" || wanted.split(',').any(|name| name == mutant.name))
        .collect();
    let sound = chosen
        .iter()
        .any(|mutant| mutant.caught_by == SIMULATION)
        .then(|| keep(simulation(copy.path()).unwrap(), copy.path()));
    let mut missed = Vec::new();
    for mutant in &chosen {
        let (caught, how) = match &sound {
            Some(sound) if mutant.caught_by == SIMULATION => simulate(mutant, copy.path(), sound),
            _ => plant(mutant, copy.path()),
        };
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
    if let Err(said) = build(copy, mutant.caught_by) {
        return (false, format!("does not build without it: {said}"));
    }
    let running = Instant::now();
    if !passes(copy, mutant.caught_by, PATIENCE) {
        return (false, "its tests fail without it".to_owned());
    }
    // Those that hang with it are not waited for much longer than they take.
    let patience = Duration::from_secs(30) + 4 * running.elapsed();
    fs::write(&file, source.replace(mutant.sound, mutant.faulty)).unwrap();
    let built = build(copy, mutant.caught_by);
    let passed = built.is_ok() && passes(copy, mutant.caught_by, patience);
    fs::write(&file, source).unwrap();
    let (tests, seconds) = (mutant.caught_by, begin.elapsed().as_secs());
    match (built, passed) {
        (Err(said), _) => (false, format!("does not build: {said}")),
        (Ok(()), true) => (false, format!("NOT noticed by {tests:?}, {seconds} s")),
        (Ok(()), false) => (true, format!("noticed by {tests:?}, {seconds} s")),
    }
}

/// Whether the simulation finds the fault, in a seed that passes without it.
fn simulate(mutant: &Mutant, copy: &Path, sound: &Path) -> (bool, String) {
    let file = copy.join(mutant.file);
    let source = fs::read_to_string(&file).unwrap();
    fs::write(&file, source.replace(mutant.sound, mutant.faulty)).unwrap();
    let faulty = simulation(copy);
    fs::write(&file, source).unwrap();
    let Some(faulty) = faulty else {
        return (false, "does not build".to_owned());
    };
    let begin = Instant::now();
    let found = (1..=SEEDS).find_map(|seed| Some((seed, run_seed(&faulty, seed).err()?)));
    let seconds = begin.elapsed().as_secs();
    match found {
        None => (false, format!("NOT found in {SEEDS} seeds, {seconds} s")),
        Some((seed, violation)) => match run_seed(sound, seed) {
            Ok(()) => (
                true,
                format!("found by seed {seed}, {seconds} s: {violation}"),
            ),
            Err(_) => (false, format!("seed {seed} fails without it")),
        },
    }
}

/// Builds the simulation in the copy. Where it is then.
fn simulation(copy: &Path) -> Option<PathBuf> {
    let output = Command::new(env!("CARGO"))
        .args(["test", "--no-run", "--target-dir"])
        .arg(target())
        .args(SIMULATION)
        // For what changes is little.
        .env("CARGO_INCREMENTAL", "1")
        .current_dir(copy)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    let program = said.rsplit_once("simulation/main.rs (")?.1;
    output
        .status
        .success()
        .then(|| program.split(')').next().unwrap().into())
}

/// Keeps a program where no later build replaces it.
fn keep(program: PathBuf, copy: &Path) -> PathBuf {
    let kept = copy.join("sound");
    fs::copy(program, &kept).unwrap();
    kept
}

/// Runs one seed. An error says what was violated first.
fn run_seed(program: &Path, seed: u64) -> Result<(), String> {
    let mut command = Command::new(program);
    command.env("DCHAN_SIM_SEED", seed.to_string());
    let (succeeded, output) = run(&mut command, PATIENCE);
    if succeeded {
        return Ok(());
    }
    let mut lines = output.lines();
    let violation = lines.find_map(|line| line.strip_prefix("violated: "));
    Err(violation.unwrap_or("no end of it").to_owned())
}

fn target() -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR");
    let target = target.map_or_else(|| root().join("target"), PathBuf::from);
    target.join("mutants")
}

/// How long tests may take, and a build with all that the crate needs.
const PATIENCE: Duration = Duration::from_secs(300);
const BUILD_PATIENCE: Duration = Duration::from_secs(3600);

/// Builds tests in the copy. An error is what the compiler said.
fn build(copy: &Path, arguments: &[&str]) -> Result<(), String> {
    let mut command = Command::new(env!("CARGO"));
    command.args(["test", "--no-run", "--target-dir"]);
    command.arg(target()).args(arguments).current_dir(copy);
    let (succeeded, said) = run(&mut command, BUILD_PATIENCE);
    succeeded.then_some(()).ok_or(said)
}

/// Runs tests in the copy. Those that hang fail, and so does a run of none.
fn passes(copy: &Path, arguments: &[&str], patience: Duration) -> bool {
    let mut command = Command::new(env!("CARGO"));
    command.args(["test", "--target-dir"]);
    command.arg(target()).args(arguments).current_dir(copy);
    let (succeeded, output) = run(&mut command, patience);
    succeeded && output.contains(" ... ok")
}

/// Whether a command succeeds, and what it says. One that takes longer does not.
fn run(command: &mut Command, patience: Duration) -> (bool, String) {
    let mut output = tempfile::tempfile().unwrap();
    let mut child = command
        .env_remove("DCHAN_MUTANTS")
        .stdout(output.try_clone().unwrap())
        .stderr(output.try_clone().unwrap())
        // With all that it starts.
        .process_group(0)
        .spawn()
        .unwrap();
    let begin = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if begin.elapsed() > patience {
            let group = format!("-{}", child.id());
            let killed = Command::new("kill").args(["-9", "--", &group]).status();
            assert!(killed.unwrap().success());
            break child.wait().unwrap();
        }
        thread::sleep(Duration::from_millis(20));
    };
    let mut said = String::new();
    output.rewind().unwrap();
    output.read_to_string(&mut said).unwrap();
    (status.success(), said)
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
