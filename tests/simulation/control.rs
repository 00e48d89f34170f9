//! What has to be true of the control plane at all times, held against what the
//! nodes say of themselves and what has been done to them.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use tracing::field::{Field, Visit};

use crate::{ledger::CHANGING, node::namespace};

/// How many entries a new voter may lack: more than the policy allows, for the
/// leader sees its own log late.
const CAUGHT_UP: u64 = 64;
/// Who has heard a leader so long ago refuses its vote, whenever in the course
/// of an attempt it was asked: the lease, and the time that an attempt takes.
const REFUSES: [Duration; 2] = [Duration::from_millis(320), Duration::from_millis(480)];

/// What an event says.
#[derive(Debug, Default)]
pub(crate) struct Fields(pub(crate) Vec<(&'static str, String)>);

impl Fields {
    pub(crate) fn get(&self, name: &str) -> &str {
        let field = self.0.iter().find(|(known, _)| *known == name);
        field.map_or("", |(_, value)| &**value)
    }

    fn number(&self, name: &str) -> u64 {
        self.get(name).parse().unwrap()
    }

    /// The nodes that a field names.
    fn nodes(&self, name: &str) -> BTreeSet<Node> {
        nodes(self.get(name))
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.push((field.name(), format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.push((field.name(), value.to_owned()));
    }
}

/// The id of a node, as it is printed.
type Node = String;
/// A process of a node.
pub(crate) type Boot = (Node, u64);

/// The words and numbers of what was printed for debugging.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && !"-:".contains(c))
        .map(|word| word.trim_end_matches(':'))
        .filter(|word| !word.is_empty())
}

fn nodes(text: &str) -> BTreeSet<Node> {
    let mut words = words(text);
    let mut nodes = BTreeSet::new();
    while words.any(|word| word == "NodeId") {
        nodes.extend(words.next().map(str::to_owned));
    }
    nodes
}

/// What is agreed after an entry of the log.
#[derive(Default)]
struct Agreed {
    /// Who is up: in which boot, and where.
    up: BTreeMap<Node, (u64, String)>,
    /// By namespace.
    receivers: BTreeSet<(String, Boot)>,
    /// Two sets while they change.
    voters: Vec<BTreeSet<Node>>,
}

impl Agreed {
    fn of(fields: &Fields) -> Self {
        let mut agreed = Self::default();
        let mut words_of_nodes = words(fields.get("nodes"));
        while words_of_nodes.any(|word| word == "NodeId") {
            let mut next = |skip| words_of_nodes.nth(skip).unwrap_or_default().to_owned();
            let (node, address, boot) = (next(0), next(2), next(1));
            agreed.up.insert(node, (boot.parse().unwrap(), address));
        }
        // A name is the one that is quoted before the label, which is too.
        let mut namespace = String::new();
        let mut words_of_receivers = words(fields.get("receivers"));
        let mut last = "";
        while let Some(word) = words_of_receivers.next() {
            match word {
                "Receivers" => namespace = last.to_owned(),
                "NodeId" => {
                    let mut next = || words_of_receivers.next().unwrap_or_default();
                    let (node, boot) = (next().to_owned(), next().parse().unwrap());
                    agreed.receivers.insert((namespace.clone(), (node, boot)));
                }
                _ => {}
            }
            last = word;
        }
        let sets = fields.get("voters").split('}').map(nodes);
        agreed.voters = sets.filter(|set| !set.is_empty()).collect();
        agreed
    }

    fn is_up(&self, (node, boot): &Boot) -> bool {
        self.up.get(node).is_some_and(|(up, _)| up == boot)
    }
}

#[derive(Default)]
pub(crate) struct Control {
    leaders: BTreeMap<u64, Node>,
    /// What each entry of the log has made of the state, and who said so first.
    applied: BTreeMap<u64, (String, u64, String)>,
    /// After the last of them.
    agreed: Agreed,
    /// Voters of before, and until when.
    former_voters: VecDeque<(Duration, BTreeSet<Node>)>,
    /// The last boot that each node came up in.
    boots: BTreeMap<Node, u64>,
    /// Those that were evicted, or left.
    dismissed: BTreeSet<Boot>,
    /// Those that have ceased to receive the changing namespace.
    ceased: BTreeSet<Boot>,
    /// Who runs on each host.
    hosts: BTreeMap<String, Node>,
    /// What each node has said that it stored: its vote, and its log up to
    /// there.
    stored: BTreeMap<Node, (String, u64)>,
    /// When each node heard from a leader, of late.
    heard: BTreeMap<Node, VecDeque<Duration>>,
}

impl Control {
    /// How many entries of the log have been applied.
    pub(crate) fn applied(&self) -> usize {
        self.applied.len()
    }

    /// It leaves, or is evicted.
    pub(crate) fn dismiss(&mut self, boot: Boot) {
        self.dismissed.insert(boot);
    }

    pub(crate) fn ceases(&mut self, boot: Boot) {
        self.ceased.insert(boot);
    }

    /// What was a moment ago is long ago now, on this host.
    pub(crate) fn leaps(&mut self, host: &str) {
        let node = self.node(host);
        self.heard.remove(&node);
    }

    fn node(&self, host: &str) -> Node {
        self.hosts.get(host).cloned().unwrap_or_default()
    }

    fn log_end(&mut self, node: &Node) -> &mut u64 {
        &mut self.stored.entry(node.clone()).or_default().1
    }

    /// Takes in what a host says. An error says what must never be.
    pub(crate) fn heed(
        &mut self,
        now: Duration,
        host: &str,
        fields: &Fields,
    ) -> Result<(), String> {
        let node = self.node(host);
        match fields.get("message") {
            "applied" => return self.apply(now, host, fields),
            "leader changed" => return self.led(fields),
            "changing the membership" => return self.may_change(&node, fields),
            "standing for election" => return self.may_stand(now, &node, fields),
            "found in the store" => return self.found(host, fields),
            "evicting a node" => {
                self.dismiss((fields.get("peer").to_owned(), fields.number("boot")));
            }
            "heard a leader" => {
                let heard = self.heard.entry(node).or_default();
                heard.retain(|heard| now - *heard <= REFUSES[1]);
                heard.push_back(now);
            }
            "stored a vote" => {
                self.stored.entry(node).or_default().0 = fields.get("vote").to_owned();
            }
            "stored entries" | "purged entries" => {
                let end = self.log_end(&node);
                *end = fields.number("end").max(*end);
            }
            "cut entries off" => *self.log_end(&node) = fields.number("end"),
            _ => {}
        }
        Ok(())
    }

    /// One leader a term.
    fn led(&mut self, fields: &Fields) -> Result<(), String> {
        let (leader, term) = (fields.get("leader"), fields.number("term"));
        let known = self
            .leaders
            .entry(term)
            .or_insert_with(|| leader.to_owned());
        match known == leader {
            true => Ok(()),
            false => Err(format!("two leaders in term {term}: {known} and {leader}")),
        }
    }

    /// What a node said that it has stored is there after a crash.
    fn found(&mut self, host: &str, fields: &Fields) -> Result<(), String> {
        let node = fields.get("node").to_owned();
        let found = (fields.get("vote").to_owned(), fields.number("end"));
        self.hosts.insert(host.to_owned(), node.clone());
        self.heard.remove(&node);
        match self.stored.insert(node.clone(), found.clone()) {
            Some(stored) if stored != found => Err(format!(
                "{node} stored {stored:?}, as vote and end of its log, and found {found:?}"
            )),
            _ => Ok(()),
        }
    }

    /// Nobody votes who has not caught up, and no majority goes silently.
    fn may_change(&mut self, leader: &Node, fields: &Fields) -> Result<(), String> {
        let change = fields.get("change");
        if !change.starts_with("SetVoters") {
            return Ok(());
        }
        let (due, voters) = (nodes(change), fields.nodes("voters"));
        let end = *self.log_end(leader);
        for promoted in due.difference(&voters) {
            let has = *self.log_end(promoted);
            if has + CAUGHT_UP < end {
                return Err(format!(
                    "{promoted} is to vote, with {has} entries of {end}"
                ));
            }
        }
        let stay = due.intersection(&voters).count();
        let mut gone = voters.difference(&due);
        let silent = fields.nodes("silent");
        let forced = due.len() < voters.len() && gone.any(|node| silent.contains(node));
        match forced && 2 * stay <= voters.len() {
            true => Err(format!("a majority of {voters:?} is lost: {due:?}")),
            false => Ok(()),
        }
    }

    /// Who stands has asked a majority, and nobody who hears a leader.
    fn may_stand(&mut self, now: Duration, node: &Node, fields: &Fields) -> Result<(), String> {
        let granted = fields.nodes("granted");
        // They may have changed since it asked.
        let former = self.former_voters.iter();
        let former = former.filter(|(until, _)| now - *until <= REFUSES[0]);
        let mut sets = self.agreed.voters.iter().chain(former.map(|(_, set)| set));
        let majority = |set: &BTreeSet<Node>| 2 * set.intersection(&granted).count() > set.len();
        if !self.agreed.voters.is_empty() && !sets.any(majority) {
            return Err(format!(
                "{node} stands, with the votes of {granted:?} alone"
            ));
        }
        let [from, to] = REFUSES;
        for voter in granted.iter().filter(|voter| *voter != node) {
            let mut heard = self.heard.get(voter).into_iter().flatten();
            if heard.any(|heard| (from..=to).contains(&(now - *heard))) {
                return Err(format!(
                    "{voter}, who hears a leader, would vote for {node}"
                ));
            }
        }
        Ok(())
    }

    /// The same entry everywhere, and the same state after it.
    fn apply(&mut self, now: Duration, host: &str, fields: &Fields) -> Result<(), String> {
        let entry = fields.get("entry");
        let index = entry.rsplit(['-', '.']).next().unwrap_or_default();
        let index = index.parse().unwrap();
        let mut digest = DefaultHasher::new();
        fields.0.hash(&mut digest);
        let state = digest.finish();
        if let Some((first, known, who)) = self.applied.get(&index) {
            return match first == entry && *known == state {
                true => Ok(()),
                false => Err(format!(
                    "{who} and {host} disagree on what is applied: {first} and {fields:?}"
                )),
            };
        }
        let outcome = (entry.to_owned(), state, host.to_owned());
        self.applied.insert(index, outcome);
        let before = std::mem::replace(&mut self.agreed, Agreed::of(fields));
        if before.voters != self.agreed.voters {
            let recent = |until: &Duration| now - *until <= REFUSES[0];
            self.former_voters.retain(|(until, _)| recent(until));
            let former = before.voters.iter().cloned();
            self.former_voters.extend(former.map(|set| (now, set)));
        }
        self.follows(&before)
            .map_err(|error| format!("entry {entry}: {error}"))
    }

    /// Nobody comes back from the past, or goes for no reason, and neither does
    /// a registration.
    fn follows(&mut self, before: &Agreed) -> Result<(), String> {
        let Agreed { up, receivers, .. } = &self.agreed;
        for (node, (boot, address)) in &before.up {
            let replaced = up.iter().any(|(other, (up, there))| match other == node {
                true => up >= boot,
                false => there == address,
            });
            if !replaced && !self.dismissed.contains(&(node.clone(), *boot)) {
                return Err(format!("{node} is gone, in boot {boot}, for no reason"));
            }
        }
        for (node, (boot, _)) in up {
            let last = self.boots.entry(node.clone()).or_default();
            if boot < last {
                return Err(format!("{node} is up in boot {boot}, after {last}"));
            }
            *last = *boot;
        }
        for (namespace, boot) in receivers {
            if !self.agreed.is_up(boot) {
                return Err(format!("{boot:?} receives {namespace}, and is not up"));
            }
        }
        let changing = namespace(CHANGING);
        for (namespace, boot) in before.receivers.difference(receivers) {
            let ceased = *namespace == changing && self.ceased.contains(boot);
            if self.agreed.is_up(boot) && !ceased && !self.dismissed.contains(boot) {
                return Err(format!(
                    "{boot:?} receives {namespace} no more, for no reason"
                ));
            }
        }
        Ok(())
    }
}
