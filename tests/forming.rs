//! How nodes come to be one cluster, and what keeps them from it.

mod common;

use std::{
    fs, io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use common::*;
use dchan::{
    Cluster, StartError,
    transport::{BoxFuture, Connection, Listener, Tcp, Transport},
};
use futures_util::future::join_all;

/// Waits until all nodes see the same members, one leader, and so many voters.
async fn until_one_cluster(nodes: &[Cluster], voters: usize) {
    until("all nodes are in one cluster", || {
        let all: Vec<_> = nodes.iter().map(Cluster::status).collect();
        all.iter().all(|status| {
            status.nodes.len() == nodes.len()
                && status.voters.len() == voters
                && status.leader.is_some()
                && status.leader == all[0].leader
        })
    })
    .await;
}

#[actix::test]
async fn a_node_without_peers_is_a_cluster_by_itself() {
    let node = builder().start().await.unwrap();
    until_one_cluster(std::slice::from_ref(&node), 1).await;
    assert_eq!(node.status().leader, Some(node.status().node));
    assert!(node.status().view_age.unwrap() < PATIENCE);
    shut_down(vec![node]).await;
}

#[actix::test]
async fn five_nodes_that_start_at_once_form_one_cluster() {
    let nodes = cluster_of(5).await;
    until_one_cluster(&nodes, 5).await;
    shut_down(nodes).await;
}

#[actix::test]
async fn of_an_even_number_of_nodes_one_does_not_vote() {
    let nodes = cluster_of(4).await;
    until_one_cluster(&nodes, 3).await;
    shut_down(nodes).await;
}

#[actix::test]
async fn the_order_of_start_does_not_matter() {
    // A chain: each names only the one before it, and the last starts first.
    let addresses: Vec<String> = (0..3).map(|_| free_address()).collect();
    let mut starting = Vec::new();
    for index in (0..3).rev() {
        let mut builder = Cluster::builder(&addresses[index]).join_timeout(PATIENCE);
        if index > 0 {
            builder = builder.peers([&addresses[index - 1]]);
        }
        trace();
        starting.push(actix::spawn(builder.start()));
        // The next one starts when this one listens.
        until("it listens", || {
            std::net::TcpStream::connect(&addresses[index]).is_ok()
        })
        .await;
    }
    let nodes = join_all(starting).await;
    let nodes: Vec<_> = nodes
        .into_iter()
        .map(|node| node.unwrap().unwrap())
        .collect();
    until_one_cluster(&nodes, 3).await;
    shut_down(nodes).await;
}

#[actix::test]
async fn a_node_joins_through_a_follower() {
    let mut nodes = cluster_of(3).await;
    until_one_cluster(&nodes, 3).await;
    let (_, follower) = leader_and_follower(&nodes);
    let peers = [follower.status().address];
    nodes.push(builder().peers(peers).start().await.unwrap());
    until_one_cluster(&nodes, 3).await;
    shut_down(nodes).await;
}

#[actix::test]
async fn a_node_that_has_left_joins_again_as_the_same_node() {
    let dir = tempfile::tempdir().unwrap();
    let first = builder().start().await.unwrap();
    let second = || {
        builder()
            .peers([first.status().address])
            .data_dir(dir.path())
            .start()
    };
    let node = second().await.unwrap();
    let before = node.status();
    node.shutdown().await.unwrap();
    until("it has left", || first.status().nodes.len() == 1).await;

    let node = second().await.unwrap();
    let after = node.status();
    assert_eq!((after.node, after.boot), (before.node, before.boot + 1));
    until("it is back", || first.status().nodes.len() == 2).await;
    shut_down(vec![node, first]).await;
}

#[actix::test]
async fn a_node_alone_restarts_on_its_data_directory() {
    let dir = tempfile::tempdir().unwrap();
    let start = || builder().data_dir(dir.path()).start();
    let node = start().await.unwrap();
    let before = node.status();
    let (recorder, _) = Recorder::start_on(&node, "numbers").await;
    recorder.do_send(Stop);
    node.shutdown().await.unwrap();

    let node = start().await.unwrap();
    let after = node.status();
    assert_eq!((after.node, after.boot), (before.node, before.boot + 1));
    assert!(after.receivers.is_empty(), "{:?}", after.receivers);
    shut_down(vec![node]).await;
}

#[actix::test]
async fn as_many_nodes_as_it_takes_form_a_cluster() {
    let first = builder()
        .founders(2)
        .join_timeout(Duration::from_millis(200));
    assert!(matches!(
        first.start().await,
        Err(StartError::NotJoined { .. })
    ));

    // The first one of these knows no other.
    let address = free_address();
    let first = Cluster::builder(&address)
        .founders(2)
        .join_timeout(PATIENCE);
    let second = builder().peers([&address]).founders(2);
    let nodes = join_all([first.start(), second.start()]).await;
    let nodes: Vec<Cluster> = nodes.into_iter().map(Result::unwrap).collect();
    until_one_cluster(&nodes, 1).await;
    shut_down(nodes).await;
}

#[actix::test]
async fn peers_can_be_host_names() {
    let first = builder().start().await.unwrap();
    let port = first
        .status()
        .address
        .rsplit(':')
        .next()
        .unwrap()
        .to_owned();
    let by_name = format!("localhost:{port}");
    let second = builder().peers([&by_name]).start().await.unwrap();
    let nodes = [first, second];
    until_one_cluster(&nodes, 1).await;
    shut_down(nodes.into()).await;

    let unknown = builder().peers(["nobody.invalid:1"]);
    let unknown = unknown.join_timeout(Duration::from_millis(200)).start();
    assert!(matches!(unknown.await, Err(StartError::NotJoined { .. })));
}

/// TCP with a name that stands for several addresses, of which a connection takes
/// the first that answers, and with names for an address and the other loopback one.
/// Counts how often it is asked.
#[derive(Clone, Debug, Default)]
struct Named(Arc<Mutex<Vec<String>>>, Arc<AtomicUsize>);

impl Named {
    const NAME: &str = "cluster.test:7000";

    fn locked(&self) -> MutexGuard<'_, Vec<String>> {
        self.0.lock().expect("no panic while names are looked up")
    }

    fn stands_for<const N: usize>(&self, addresses: [&str; N]) {
        *self.locked() = addresses.map(str::to_owned).into();
    }

    fn addresses(&self, name: &str) -> Vec<String> {
        match (name, name.split_once(".test:")) {
            (Self::NAME, _) => self.locked().clone(),
            (_, Some((host, port))) => vec![format!("[::1]:{port}"), format!("{host}:{port}")],
            (address, None) => vec![address.to_owned()],
        }
    }
}

impl Transport for Named {
    fn listen<'a>(&'a self, addr: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Tcp.listen(addr)
    }

    fn connect<'a>(&'a self, addr: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Connection>>> {
        Box::pin(async {
            let mut connected = Err(io::ErrorKind::NotFound.into());
            for address in self.addresses(addr) {
                connected = Tcp.connect(&address).await;
                if connected.is_ok() {
                    break;
                }
            }
            connected
        })
    }

    fn look_up<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        let addresses = self.addresses(name);
        self.1.fetch_add(1, Relaxed);
        Box::pin(async move {
            let addresses = addresses.iter().map(|address| address.parse());
            addresses
                .collect::<Result<_, _>>()
                .map_err(io::Error::other)
        })
    }
}

#[actix::test]
async fn a_node_comes_back_though_all_have_moved_by_a_name_that_it_has_itself() {
    let (its, others) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (name, here) = (Named::default(), free_address());
    let first = || builder().data_dir(others.path()).start();
    let second = || {
        Cluster::builder(&here)
            .join_timeout(PATIENCE)
            .transport(name.clone())
            .peers([Named::NAME])
            .data_dir(its.path())
            .start()
    };
    let other = first().await.unwrap();
    name.stands_for([other.address()]);
    let node = second().await.unwrap();
    shut_down(vec![node]).await;
    until("it has left", || other.status().nodes.len() == 1).await;
    let before = other.address().to_owned();
    shut_down(vec![other]).await;

    let other = first().await.unwrap();
    assert_ne!(other.address(), before);
    name.stands_for([&here, other.address()]);
    let node = second().await.unwrap();
    until("it is back", || other.status().nodes.len() == 2).await;
    shut_down(vec![node, other]).await;
}

#[actix::test]
async fn nodes_whose_names_stand_for_both_loopback_addresses_form_a_cluster() {
    trace();
    let addresses = [free_address(), free_address()];
    let names = addresses
        .each_ref()
        .map(|address| address.replace(':', ".test:"));
    let starts = addresses.iter().map(|address| {
        Cluster::builder(address)
            .join_timeout(PATIENCE)
            .transport(Named::default())
            .peers(&names)
            .start()
    });
    let nodes: Vec<Cluster> = join_all(starts)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    until_one_cluster(&nodes, 1).await;
    shut_down(nodes).await;
}

#[actix::test]
async fn a_node_whose_cluster_is_gone_before_it_was_taken_in_forms_another_one() {
    let mut nodes = cluster_of(3).await;
    let last = nodes.remove(0);
    drop(nodes);
    until("it has no quorum", || !last.status().has_quorum).await;

    let (address, there) = (free_address(), last.status().address);
    let names = Named::default();
    let joins = Cluster::builder(&address)
        .join_timeout(PATIENCE)
        .transport(names.clone())
        .peers([&there]);
    let joins = actix_rt::spawn(joins.start());
    // Once to find the cluster, and then for each attempt to be taken in.
    until("it cannot join", || names.1.load(Relaxed) >= 3).await;
    drop(last);
    until("it is gone", || std::net::TcpListener::bind(&there).is_ok()).await;
    let other = Cluster::builder(&there)
        .join_timeout(PATIENCE)
        .peers([&address]);
    let nodes = [other.start().await.unwrap(), joins.await.unwrap().unwrap()];
    until_one_cluster(&nodes, 1).await;
    shut_down(nodes.into()).await;
}

#[actix::test]
async fn a_peer_of_another_cluster_keeps_no_node_from_its_own() {
    let (its, owns) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let own = builder().data_dir(owns.path()).start().await.unwrap();
    let node = builder().data_dir(its.path()).peers([own.address()]);
    shut_down(vec![node.start().await.unwrap(), own]).await;
    // Its own cluster is somewhere else now, and another one is asked first.
    let mut addresses = [free_address(), free_address()];
    addresses.sort();
    let other = Cluster::builder(&addresses[0]).cluster_id("theirs");
    let own = Cluster::builder(&addresses[1]).data_dir(owns.path());
    let (other, own) = (other.start().await.unwrap(), own.start().await.unwrap());

    let node = builder().data_dir(its.path()).peers(&addresses);
    let node = node.start().await.unwrap();
    until("it is back", || own.status().nodes.len() == 2).await;
    shut_down(vec![node, own, other]).await;
}

#[actix::test]
async fn a_node_that_moves_to_another_address_stays_the_same_node() {
    let dir = tempfile::tempdir().unwrap();
    let first = builder().start().await.unwrap();
    let peers = [first.status().address];
    let moving = || builder().peers(peers.clone()).data_dir(dir.path());
    let second = moving().start().await.unwrap();
    let before = second.status();
    second.shutdown().await.unwrap();

    let second = moving().start().await.unwrap();
    let after = second.status();
    assert_eq!(after.node, before.node);
    assert_ne!(after.address, before.address);
    let nodes = [first, second];
    until("all know the new address", || {
        let addresses = nodes.iter().map(|node| node.status().nodes);
        addresses
            .into_iter()
            .all(|nodes| nodes.get(&after.node) == Some(&after.address))
    })
    .await;
    shut_down(nodes.into()).await;
}

#[actix::test]
async fn clusters_of_one_name_that_were_formed_apart_do_not_mix() {
    let (one, other) = (
        builder().start().await.unwrap(),
        builder().start().await.unwrap(),
    );
    let both = [one.status().address, other.status().address];
    let Err(error) = builder().peers(both).start().await else {
        panic!("it has joined one of two clusters");
    };
    assert!(error.to_string().contains("formed apart"), "{error}");
    shut_down(vec![one, other]).await;
}

#[actix::test]
async fn a_peer_of_another_cluster_is_an_error_that_names_both() {
    let other = builder().cluster_id("theirs").start().await.unwrap();
    let error = builder()
        .cluster_id("ours")
        .peers([other.status().address])
        .start()
        .await
        .unwrap_err();
    assert!(
        matches!(&error, StartError::OtherCluster { theirs, ours, peer }
            if theirs == "theirs" && ours == "ours" && *peer == other.status().address),
        "{error:?}"
    );
    assert_eq!(other.status().nodes.len(), 1);
    shut_down(vec![other]).await;
}

#[actix::test]
async fn a_peer_that_cannot_be_reached_is_an_error_after_the_join_timeout() {
    let (peer, own) = (free_address(), free_address());
    let error = Cluster::builder(&own)
        .peers([&peer])
        .join_timeout(Duration::from_millis(300))
        .start()
        .await
        .unwrap_err();
    assert!(
        matches!(&error, StartError::NotJoined { peers, .. } if *peers == [peer.clone()]),
        "{error:?}"
    );
    let says = format!("no answer from {peer}");
    assert!(error.to_string().contains(&says), "{error}");
    // Nothing of the node is left.
    std::net::TcpListener::bind(own).unwrap();
}

#[actix::test]
async fn a_port_in_use_is_an_error() {
    let node = builder().start().await.unwrap();
    let address = node.status().address;
    let error = Cluster::builder(&address).start().await.unwrap_err();
    assert!(
        matches!(&error, StartError::Bind { address: a, .. } if *a == address),
        "{error:?}"
    );
    shut_down(vec![node]).await;
}

#[actix::test]
async fn a_corrupt_data_directory_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("raft.redb"), "this is no database").unwrap();
    storage_error(dir.path(), "").await;
}

#[actix::test]
async fn a_data_directory_that_cannot_be_written_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    storage_error(&file, "").await;
    storage_error(&file.join("below"), "").await;
}

#[actix::test]
async fn a_data_directory_in_use_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let node = builder().data_dir(dir.path()).start().await.unwrap();
    storage_error(dir.path(), "another process has it open").await;
    shut_down(vec![node]).await;
}

#[actix::test]
async fn a_data_directory_of_another_cluster_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let founded = builder().cluster_id("first").data_dir(dir.path());
    shut_down(vec![founded.start().await.unwrap()]).await;
    storage_error(
        dir.path(),
        "of the cluster first, and this node's cluster_id is",
    )
    .await;
    let again = builder().cluster_id("first").data_dir(dir.path());
    shut_down(vec![again.start().await.unwrap()]).await;
}

#[actix::test]
async fn a_node_that_never_belonged_to_a_cluster_may_belong_to_another() {
    let dir = tempfile::tempdir().unwrap();
    let lonely = builder()
        .cluster_id("frist")
        .data_dir(dir.path())
        .peers([free_address()])
        .join_timeout(Duration::from_millis(100));
    let error = lonely.start().await.unwrap_err();
    assert!(matches!(error, StartError::NotJoined { .. }), "{error:?}");
    let node = builder().cluster_id("first").data_dir(dir.path());
    shut_down(vec![node.start().await.unwrap()]).await;
}

async fn storage_error(data_dir: &std::path::Path, says: &str) {
    let started = builder().data_dir(data_dir).start().await;
    let error = started.expect_err("a node on storage that it cannot use");
    assert!(
        matches!(&error, StartError::Storage { path, .. } if path == data_dir),
        "{error:?}"
    );
    assert!(error.to_string().contains(says), "{error}");
}

#[actix::test]
async fn a_setting_that_makes_no_sense_is_an_error_that_names_it() {
    let bad = [
        ("peers", builder().peers(["nonsense"])),
        ("voters", builder().voters(4)),
        ("window", builder().window(0)),
        ("cluster_id", builder().cluster_id("")),
        ("advertise", builder().advertise("http://here")),
        ("advertise", Cluster::builder("0.0.0.0:0")),
    ];
    for (name, builder) in bad {
        let error = builder.start().await.unwrap_err();
        assert!(
            matches!(&error, StartError::Config { setting, .. } if *setting == name),
            "{error:?}"
        );
    }
    let error = builder().build().await.map(|_| ()).unwrap_err();
    assert!(matches!(
        error,
        StartError::Config {
            setting: "advertise",
            ..
        }
    ));
}
