//! What the cluster has agreed on, as plain data: who is up, who receives
//! what, and the commands that change it.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::Arc,
};

use serde::{Deserialize, Serialize};

/// Identifies a node for as long as its data directory lives.
///
/// It is drawn at random when a node first starts and stored with its log. A
/// node without a data directory is a new node at each start.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub(crate) u64);

impl NodeId {
    /// The id as a number, for logs and metrics.
    pub fn get(self) -> u64 {
        self.0
    }
}

impl From<u64> for NodeId {
    fn from(id: u64) -> Self {
        Self(id)
    }
}

/// Sixteen hexadecimal digits.
impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The same digits, so that what is debugged can be found in the log.
impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeId({self})")
    }
}

/// Who a node is, for as long as its process runs.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// The name that its cluster was configured with.
    pub(crate) cluster: Arc<str>,
    pub(crate) node: NodeId,
    /// Counts the starts of the node: a later process has a higher one.
    pub(crate) boot: u64,
    /// Where its peers reach it.
    pub(crate) address: Arc<str>,
}

/// A change to the view. Everything that Raft agrees on is one of these.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Command {
    /// Tells this cluster from any other one of the same name, and says who has
    /// formed it. Only the first one counts.
    Form {
        formation: u64,
        members: Vec<(NodeId, Member)>,
    },
    /// The node runs at this address. What its earlier boots had registered is
    /// gone, and so is any other node that was at the address.
    NodeUp {
        node: NodeId,
        boot: u64,
        address: Arc<str>,
    },
    /// What this boot of the node receives gains and loses. Of no effect once
    /// that boot is no longer up.
    Receive {
        node: NodeId,
        boot: u64,
        register: Vec<(Arc<str>, Arc<str>)>,
        unregister: Vec<Arc<str>>,
    },
    /// This boot of the node is gone.
    NodeDown { node: NodeId, boot: u64 },
}

/// A node that is up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Member {
    pub(crate) address: Arc<str>,
    pub(crate) boot: u64,
}

/// The nodes that receive one namespace, all with the same type of message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Receivers {
    pub(crate) label: Arc<str>,
    /// With the boot that registered.
    pub(crate) nodes: BTreeMap<NodeId, u64>,
}

/// A node has so many registrations agreed at once, and as many that have ended: an
/// entry of the log is to be stored and sent in a moment.
const AT_ONCE: usize = 1000;

/// What has been proposed may be agreed late: of the last so many nodes that went
/// the view knows their last boots, and takes none back in an earlier one.
const GONE: usize = 1024;

/// A node's copy of the agreed facts.
///
/// Namespaces share their receivers between one view and the next, so that a
/// change costs a clone of what it touches and a comparison finds it by
/// pointer.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct View {
    /// A random number that the cluster drew when it was formed; nought before.
    pub(crate) formation: u64,
    pub(crate) nodes: BTreeMap<NodeId, Member>,
    pub(crate) receivers: BTreeMap<Arc<str>, Arc<Receivers>>,
    /// Nodes that went and their last boots, in that order.
    pub(crate) gone: Arc<VecDeque<(NodeId, u64)>>,
}

impl View {
    /// Applies one command. Pure: the same on every node.
    pub(crate) fn apply(&mut self, command: &Command) {
        match command {
            Command::Form { formation, members } => {
                if self.formation == 0 {
                    self.formation = *formation;
                    for (node, member) in members {
                        self.node_up(*node, member.boot, &member.address);
                    }
                }
            }
            Command::NodeUp {
                node,
                boot,
                address,
            } => self.node_up(*node, *boot, address),
            Command::Receive {
                node,
                boot,
                register,
                unregister,
            } => {
                if !self.is_up(*node, *boot) {
                    return;
                }
                for namespace in unregister {
                    self.unregister(namespace, *node);
                }
                for (namespace, label) in register {
                    self.register(namespace, label, *node, *boot);
                }
            }
            Command::NodeDown { node, boot } => {
                if self.is_up(*node, *boot) {
                    self.remove(*node);
                }
            }
        }
    }

    /// Whether the node was there in a later boot, as far as is known.
    fn is_past(&self, node: NodeId, boot: u64) -> bool {
        let up = self.nodes.get(&node).map(|member| member.boot);
        let gone = self.gone.iter().find(|(gone, _)| *gone == node);
        gone.map(|(_, boot)| *boot).max(up) > Some(boot)
    }

    fn node_up(&mut self, node: NodeId, boot: u64, address: &Arc<str>) {
        if self.is_past(node, boot) {
            return;
        }
        if !self.is_up(node, boot) {
            self.remove(node);
        }
        // An address has one node: whoever was there before has lost its disk.
        let replaced: Vec<NodeId> = self
            .nodes
            .iter()
            .filter(|(other, member)| **other != node && member.address == *address)
            .map(|(other, _)| *other)
            .collect();
        for other in replaced {
            self.remove(other);
        }
        let address = address.clone();
        self.nodes.insert(node, Member { address, boot });
    }

    fn remove(&mut self, node: NodeId) {
        let Some(member) = self.nodes.remove(&node) else {
            return;
        };
        let gone = Arc::make_mut(&mut self.gone);
        gone.retain(|(gone, _)| *gone != node);
        gone.push_back((node, member.boot));
        if gone.len() > GONE {
            gone.pop_front();
        }
        let received: Vec<Arc<str>> = self
            .receivers
            .iter()
            .filter(|(_, receivers)| receivers.nodes.contains_key(&node))
            .map(|(namespace, _)| namespace.clone())
            .collect();
        for namespace in received {
            self.unregister(&namespace, node);
        }
    }

    fn register(&mut self, namespace: &Arc<str>, label: &Arc<str>, node: NodeId, boot: u64) {
        let receivers = self.receivers.entry(namespace.clone()).or_insert_with(|| {
            Arc::new(Receivers {
                label: label.clone(),
                nodes: BTreeMap::new(),
            })
        });
        // A namespace has one type of message; who comes with another one sees
        // that in the view.
        if receivers.label == *label {
            Arc::make_mut(receivers).nodes.insert(node, boot);
        }
    }

    fn unregister(&mut self, namespace: &str, node: NodeId) {
        if let Some(receivers) = self.receivers.get_mut(namespace) {
            if receivers.nodes.contains_key(&node) {
                Arc::make_mut(receivers).nodes.remove(&node);
            }
            if receivers.nodes.is_empty() {
                self.receivers.remove(namespace);
            }
        }
    }

    pub(crate) fn is_up(&self, node: NodeId, boot: u64) -> bool {
        self.nodes
            .get(&node)
            .is_some_and(|member| member.boot == boot)
    }

    /// The label under which this boot of the node receives the namespace.
    pub(crate) fn received(&self, namespace: &str, node: NodeId, boot: u64) -> Option<&Arc<str>> {
        let receivers = self.receivers.get(namespace)?;
        (receivers.nodes.get(&node) == Some(&boot)).then_some(&receivers.label)
    }

    /// What has to be agreed next for this boot of the node to receive exactly what
    /// is wanted. A namespace that others use with another type is left out:
    /// it waits for them to go.
    pub(crate) fn missing(
        &self,
        node: NodeId,
        boot: u64,
        wanted: &BTreeMap<Arc<str>, Arc<str>>,
    ) -> Option<Command> {
        let register: Vec<_> = wanted
            .iter()
            .filter(|(namespace, label)| match self.receivers.get(*namespace) {
                None => true,
                Some(receivers) => {
                    receivers.label == **label && !receivers.nodes.contains_key(&node)
                }
            })
            .map(|(namespace, label)| (namespace.clone(), label.clone()))
            .take(AT_ONCE)
            .collect();
        let unregister: Vec<_> = self
            .receivers
            .iter()
            .filter(|(namespace, receivers)| {
                receivers.nodes.contains_key(&node) && !wanted.contains_key(*namespace)
            })
            .map(|(namespace, _)| namespace.clone())
            .take(AT_ONCE)
            .collect();
        let needed = !register.is_empty() || !unregister.is_empty();
        needed.then_some(Command::Receive {
            node,
            boot,
            register,
            unregister,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn up(node: u64, boot: u64, address: &str) -> Command {
        Command::NodeUp {
            node: NodeId(node),
            boot,
            address: address.into(),
        }
    }

    fn receive(node: u64, boot: u64, namespace: &str, label: &str) -> Command {
        Command::Receive {
            node: NodeId(node),
            boot,
            register: vec![(namespace.into(), label.into())],
            unregister: vec![],
        }
    }

    fn view(commands: &[Command]) -> View {
        let mut view = View::default();
        for command in commands {
            view.apply(command);
        }
        view
    }

    #[test]
    fn a_restart_drops_what_the_earlier_boot_registered() {
        let view = view(&[up(1, 1, "a"), receive(1, 1, "n", "T"), up(1, 2, "a")]);
        assert!(view.receivers.is_empty());
        assert!(view.is_up(NodeId(1), 2));
    }

    #[test]
    fn what_an_earlier_boot_proposed_late_changes_nothing() {
        let mut view = view(&[up(1, 1, "a"), up(1, 2, "a"), receive(1, 2, "n", "T")]);
        let before = view.clone();
        for late in [
            up(1, 1, "a"),
            receive(1, 1, "m", "T"),
            Command::NodeDown {
                node: NodeId(1),
                boot: 1,
            },
        ] {
            view.apply(&late);
        }
        assert_eq!(view.nodes, before.nodes);
        assert_eq!(view.receivers, before.receivers);
    }

    #[test]
    fn a_node_that_is_gone_does_not_come_back_in_an_earlier_boot() {
        let down = Command::NodeDown {
            node: NodeId(1),
            boot: 2,
        };
        let mut view = view(&[up(1, 1, "a"), up(1, 2, "a"), down]);
        view.apply(&up(1, 1, "a"));
        assert!(view.nodes.is_empty());
        // One that was only thought to be gone comes back as it was.
        view.apply(&up(1, 2, "a"));
        assert!(view.is_up(NodeId(1), 2));
    }

    #[test]
    fn a_new_node_at_an_address_takes_the_place_of_the_old_one() {
        let view = view(&[up(1, 1, "a"), receive(1, 1, "n", "T"), up(2, 1, "a")]);
        assert!(!view.nodes.contains_key(&NodeId(1)));
        assert!(view.receivers.is_empty());
    }

    #[test]
    fn a_namespace_has_one_type_while_anybody_receives_it() {
        let mut view = view(&[
            up(1, 1, "a"),
            up(2, 1, "b"),
            receive(1, 1, "n", "T"),
            receive(2, 1, "n", "U"),
        ]);
        assert_eq!(view.received("n", NodeId(1), 1).map(|l| &**l), Some("T"));
        assert_eq!(view.received("n", NodeId(2), 1), None);

        let wanted = BTreeMap::from([("n".into(), "U".into())]);
        assert_eq!(view.missing(NodeId(2), 1, &wanted), None);
        view.apply(&Command::NodeDown {
            node: NodeId(1),
            boot: 1,
        });
        assert!(view.missing(NodeId(2), 1, &wanted).is_some());
    }

    #[test]
    fn much_that_is_missing_is_agreed_in_parts() {
        let mut view = view(&[up(1, 1, "a")]);
        let names = (0..5 * AT_ONCE / 2).map(|number| Arc::from(number.to_string()));
        let wanted: BTreeMap<_, _> = names.map(|name| (name, "T".into())).collect();
        for wanted in [wanted, BTreeMap::new()] {
            let mut parts = 0;
            while let Some(command) = view.missing(NodeId(1), 1, &wanted) {
                view.apply(&command);
                parts += 1;
            }
            assert_eq!((parts, view.receivers.len()), (3, wanted.len()));
        }
    }

    #[test]
    fn what_is_missing_makes_the_agreed_equal_the_wanted() {
        let mut view = view(&[up(1, 1, "a"), receive(1, 1, "old", "T")]);
        let wanted = BTreeMap::from([("new".into(), "T".into())]);
        let command = view.missing(NodeId(1), 1, &wanted).unwrap();
        view.apply(&command);
        assert_eq!(view.missing(NodeId(1), 1, &wanted), None);
        assert_eq!(
            view.receivers.keys().map(|n| &**n).collect::<Vec<_>>(),
            ["new"]
        );
    }
}
