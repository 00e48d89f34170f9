//! How nodes end, and that nothing is left of them.

#[path = "../common/mod.rs"]
mod common;
mod narrow;

use std::{
    net::TcpListener,
    sync::Arc,
    time::{Duration, Instant},
};

use common::*;
use dchan::{
    Builder, Cluster, DeliveryError, RegisterError, Registration, Runtime, SendError, prelude::*,
};
use futures_util::{StreamExt, future::join_all};
use narrow::Narrow;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Notify, oneshot},
    time::timeout,
};

#[actix::test]
async fn a_shutdown_frees_the_port_and_ends_the_thread() {
    let dir = tempfile::tempdir().unwrap();
    let node = builder().data_dir(dir.path()).start().await.unwrap();
    let (_recorder, _) = Recorder::start_on(&node, "numbers").await;
    let address = node.status().address;
    node.shutdown().await.unwrap();
    TcpListener::bind(address).unwrap();
    // The database is closed too.
    let again = builder().data_dir(dir.path()).start().await.unwrap();
    again.shutdown().await.unwrap();
}

#[cfg(target_os = "linux")]
#[test]
fn nothing_runs_on_after_a_shutdown() {
    // A process of its own, since other tests have threads too.
    const CHILD: &str = "DCHAN_TEST_CHILD";
    if std::env::var_os(CHILD).is_none() {
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "nothing_runs_on_after_a_shutdown", "--nocapture"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        assert!(child.status.success(), "{child:?}");
        return;
    }
    let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    let files = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let life = || {
        actix::System::new().block_on(async {
            let nodes = cluster_of(3).await;
            let mut receiver = nodes[2].namespace::<Event>("events").receiver(4);
            nodes[0].namespace("events").do_send(Event(1));
            receiver.next().await.unwrap();
            shut_down(nodes).await;
            assert_eq!(receiver.next().await, None);
        });
    };
    life();
    let before = (threads(), files());
    for _ in 0..3 {
        life();
    }
    // A thread that has been joined may be listed for a moment yet.
    let waited = Instant::now();
    while (threads() > before.0 || files() > before.1) && waited.elapsed() < PATIENCE {
        std::thread::yield_now();
    }
    let after = (threads(), files());
    assert!(
        after.0 <= before.0 && after.1 <= before.1,
        "{before:?} became {after:?}"
    );
}

#[actix::test]
async fn a_shutdown_may_wait_for_as_long_as_it_takes() {
    let there = builder().start().await.unwrap();
    let mut receiver = there.namespace::<Event>("events").receiver(1);
    receiver.ready().await.unwrap();
    let node = builder()
        .peers([there.address()])
        .drain_timeout(Duration::MAX);
    let node = node.start().await.unwrap();
    let events = node.namespace::<Event>("events");
    let delivery = events.deliver(Event(1));
    let shutdown = actix_rt::spawn(node.clone().shutdown());
    until("it takes nothing more", || {
        matches!(events.try_send(Event(2)), Err(SendError::Closed(_)))
    })
    .await;
    // All that it has taken in is waited for.
    let reading = actix_rt::spawn(async move { while receiver.next().await.is_some() {} });
    delivery.await.unwrap();
    shutdown.await.unwrap().unwrap();
    reading.abort();
    let _ = reading.await;
    shut_down(vec![there]).await;
}

#[actix::test]
async fn a_shutdown_of_the_leader_delivers_what_it_had_accepted() {
    let nodes = cluster_of(3).await;
    let (leader, follower) = leader_and_follower(&nodes);
    let (_recorder, seen) = Recorder::start_on(&follower, "numbers").await;
    let numbers = leader.namespace::<Number>("numbers");
    for number in 0..20_000 {
        numbers.do_send(Number(number));
    }
    leader.clone().shutdown().await.unwrap();
    assert_eq!(received(&seen), (0..20_000).collect::<Vec<_>>());
    assert_eq!(leader.status().traffic.dead_letters.total(), 0);

    // The others go on without it, under a new leader.
    let gone = leader.status().node;
    until("a new leader", || {
        let status = follower.status();
        status.leader.is_some_and(|leader| leader != gone) && !status.voters.contains(&gone)
    })
    .await;
    shut_down(nodes).await;
}

#[actix::test]
async fn a_receiver_that_shuts_down_hands_back_what_it_has_not_begun() {
    let nodes = cluster_of(3).await;
    let events = nodes[0].namespace::<Event>("events");
    let stalled = nodes[1].namespace::<Event>("events").receiver(4);
    stalled.ready().await.unwrap();
    let deliveries: Vec<_> = (0..1_000).map(|n| events.deliver(Event(n))).collect();
    until("they are under way", || {
        nodes[0].status().traffic.under_way == 1_000
    })
    .await;

    let mut reader = nodes[2].namespace::<Event>("events").receiver(4);
    nodes[1].clone().shutdown().await.unwrap();
    for number in 0..1_000 {
        assert_eq!(reader.next().await, Some(Event(number)));
    }
    let there = nodes[2].status().node;
    for delivery in deliveries {
        assert_eq!(delivery.await, Ok(there));
    }
    drop((stalled, reader));
    shut_down(nodes).await;
}

/// Asks for a reply that takes a while to travel.
#[derive(Message, Serialize, Deserialize)]
#[rtype(result = "Record")]
struct Fetch;

#[derive(Serialize, Deserialize)]
struct Record(#[serde(with = "serde_bytes")] Vec<u8>);

/// Tells that it has been asked, and replies when it is told to.
#[derive(Clone, Default)]
struct Archive {
    asked: Arc<Notify>,
    told: Arc<Notify>,
}

impl Actor for Archive {
    type Context = Context<Self>;
}

impl Handler<Fetch> for Archive {
    type Result = ResponseFuture<Record>;

    fn handle(&mut self, _: Fetch, _: &mut Context<Self>) -> Self::Result {
        self.asked.notify_one();
        let told = self.told.clone();
        Box::pin(async move {
            told.notified().await;
            Record(vec![7; 8 << 20])
        })
    }
}

/// Starts a node with an archive, which receives until the registration is dropped.
async fn with_archive(builder: Builder) -> (Cluster, Archive, Registration) {
    let node = builder.start().await.expect("it starts");
    let archive = Archive::default();
    let recipient = archive.clone().start().recipient();
    let registration = node.namespace::<Fetch>("archive").subscribe(recipient);
    registration.ready().await.expect("it is agreed");
    (node, archive, registration)
}

#[actix::test]
async fn a_reply_on_its_way_from_a_node_that_leaves_arrives() {
    // The one that asks leads, and so is the first to know that the other left.
    let first = builder().transport(Narrow::new()).start().await.unwrap();
    let peer = [first.status().address];
    let patient = builder().drain_timeout(Duration::from_secs(60));
    let (second, archive, _registration) = with_archive(patient.peers(peer)).await;

    let reply = first.namespace::<Fetch>("archive").send(Fetch);
    archive.asked.notified().await;
    let left = actix::spawn(second.shutdown());
    archive.told.notify_one();
    assert_eq!(reply.await.unwrap().0.len(), 8 << 20);
    left.await.unwrap().unwrap();
    first.shutdown().await.unwrap();
}

#[actix::test]
async fn a_shutdown_waits_for_the_handlers_of_who_receives_no_more() {
    let first = builder().start().await.unwrap();
    let peer = [first.status().address];
    let (second, archive, registration) = with_archive(builder().peers(peer)).await;

    let reply = first.namespace::<Fetch>("archive").send(Fetch);
    archive.asked.notified().await;
    drop(registration);
    let nobody = || first.status().receivers.is_empty();
    until("nobody receives any more", nobody).await;
    let mut left = actix::spawn(second.shutdown());
    let early = timeout(Duration::from_secs(1), &mut left).await;
    assert!(early.is_err(), "it has not waited");
    archive.told.notify_one();
    assert_eq!(reply.await.unwrap().0.len(), 8 << 20);
    left.await.unwrap().unwrap();
    first.shutdown().await.unwrap();
}

#[actix::test]
async fn a_shutdown_gives_up_a_reply_that_is_not_read() {
    let first = builder().start().await.unwrap();
    let peer = [first.status().address];
    let hasty = builder().drain_timeout(Duration::from_secs(3));
    let (second, archive, _registration) = with_archive(hasty.peers(peer.clone())).await;
    let narrow = Narrow::new();
    let asking = builder().transport(narrow.clone()).peers(peer);
    let asking = asking.start().await.unwrap();

    let reply = asking.namespace::<Fetch>("archive").send(Fetch);
    archive.asked.notified().await;
    narrow.set(0);
    archive.told.notify_one();
    let error = second.shutdown().await.unwrap_err();
    assert_eq!((error.unread, error.handling), (1, 0), "{error}");
    narrow.set(Narrow::WIDTH);
    let lost = reply.await.map(|record| record.0.len());
    assert!(matches!(lost, Err(DeliveryError::Lost { .. })), "{lost:?}");
    asking.shutdown().await.unwrap();
    first.shutdown().await.unwrap();
}

#[derive(Clone, Message, Serialize, Deserialize)]
#[rtype(result = "()")]
struct Page(#[serde(with = "serde_bytes")] Vec<u8>);

#[actix::test]
async fn what_is_on_its_way_to_a_node_that_leaves_is_handed_back() {
    // The one that sends leads, and so is the first to know that the other left.
    let first = builder().transport(Narrow::new()).start().await.unwrap();
    let peer = [first.status().address];
    let second = builder().peers(peer.clone()).start().await.unwrap();
    let third = builder().peers(peer).start().await.unwrap();
    let stalled = second.namespace::<Page>("pages").receiver(4);
    stalled.ready().await.unwrap();
    let pages = first.namespace::<Page>("pages");
    let page = Page(vec![7; 4 << 10]);
    let deliveries: Vec<_> = (0..200).map(|_| pages.deliver(page.clone())).collect();
    until("some are under way", || {
        first.status().traffic.under_way > 0
    })
    .await;

    let reader = third.namespace::<Page>("pages").receiver(4);
    let reading = actix::spawn(reader.take(200).count());
    second.shutdown().await.unwrap();
    let there = third.status().node;
    for delivery in deliveries {
        assert_eq!(delivery.await, Ok(there));
    }
    assert_eq!(reading.await.unwrap(), 200);
    shut_down(vec![third, first]).await;
}

#[actix::test]
async fn a_shutdown_with_open_channels_on_a_single_node_returns() {
    let node = builder().start().await.unwrap();
    let events = node.namespace::<Event>("events");
    let mut open = events.receiver(4);
    open.ready().await.unwrap();
    let sink = events.sink();
    let reading = actix::spawn(async move {
        let mut count = 0;
        while open.next().await.is_some() {
            count += 1;
        }
        count
    });
    for number in 0..5_000 {
        events.do_send(Event(number));
    }
    node.shutdown().await.unwrap();
    assert_eq!(reading.await.unwrap(), 5_000);
    drop(sink);
}

#[actix::test]
async fn a_shutdown_gives_up_what_a_stalled_reader_holds() {
    let node = builder()
        .drain_timeout(Duration::from_millis(200))
        .start()
        .await
        .unwrap();
    let events = node.namespace::<Event>("events");
    let stalled = events.receiver(4);
    stalled.ready().await.unwrap();
    for number in 0..10 {
        events.do_send(Event(number));
    }
    let error = node.clone().shutdown().await.unwrap_err();
    assert_eq!((error.undelivered, error.unanswered), (10, 0), "{error}");
    assert_eq!(node.status().traffic.dead_letters.total(), 10);
}

#[actix::test]
async fn a_receiver_on_a_node_that_has_shut_down_has_ended() {
    let node = builder().start().await.unwrap();
    let events = node.namespace::<Event>("events");
    node.shutdown().await.unwrap();
    let mut receiver = events.receiver(4);
    assert_eq!(receiver.ready().await, Err(RegisterError::Closed));
    assert_eq!(receiver.next().await, None);
    assert_eq!(receiver.close().await, Ok(()));
}

#[actix::test]
async fn a_rolling_shutdown_ends_with_the_last_node() {
    let nodes = cluster_of(5).await;
    for node in nodes {
        node.shutdown().await.unwrap();
    }
}

#[actix::test]
async fn all_nodes_can_shut_down_at_once() {
    let nodes = cluster_of(3).await;
    let ended = join_all(nodes.into_iter().map(Cluster::shutdown)).await;
    assert!(ended.iter().all(Result::is_ok), "{ended:?}");
}

#[actix::test]
async fn a_node_that_is_dropped_is_gone() {
    let mut nodes = cluster_of(3).await;
    let dropped = nodes.pop().unwrap();
    let address = dropped.status().address;
    drop(dropped);
    until("the port is free", || TcpListener::bind(&address).is_ok()).await;
    shut_down(nodes).await;
}

#[actix::test]
async fn a_node_can_run_on_the_arbiter_that_starts_it() {
    let one = builder()
        .runtime(Runtime::CurrentArbiter)
        .start()
        .await
        .unwrap();
    let two = builder()
        .runtime(Runtime::CurrentArbiter)
        .peers([one.status().address])
        .start()
        .await
        .unwrap();
    let (_recorder, _) = Recorder::start_on(&two, "numbers").await;
    let numbers = one.namespace::<Number>("numbers");
    let replies = join_all((0..1_000).map(|number| numbers.send(Number(number)))).await;
    for (number, reply) in (0..).zip(replies) {
        assert_eq!(reply, Ok(2 * number));
    }
    let address = two.status().address;
    shut_down(vec![two, one]).await;
    TcpListener::bind(address).unwrap();
}

#[actix::test]
async fn what_is_awaited_resolves_when_the_arbiter_of_the_node_stops() {
    let arbiter = Arbiter::new();
    let (sender, started) = oneshot::channel();
    arbiter.spawn(async move {
        let node = builder().runtime(Runtime::CurrentArbiter).start().await;
        assert!(sender.send(node.unwrap()).is_ok());
    });
    let node = started.await.unwrap();
    let events = node.namespace::<Event>("events");
    let waiting = events.deliver(Event(1));
    arbiter.stop();
    assert_eq!(waiting.await, Err(DeliveryError::Closed));
    assert_eq!(events.deliver(Event(2)).await, Err(DeliveryError::Closed));
    arbiter.join().unwrap();
}

#[actix::test]
async fn a_handler_that_blocks_its_arbiter_costs_neither_leadership_nor_messages() {
    struct Blocker {
        begun: tokio::sync::mpsc::UnboundedSender<()>,
        end: std::sync::mpsc::Receiver<()>,
    }
    impl Actor for Blocker {
        type Context = Context<Self>;
    }
    impl Handler<Event> for Blocker {
        type Result = ();
        fn handle(&mut self, _: Event, _: &mut Self::Context) {
            let _ = self.begun.send(());
            let _ = self.end.recv();
        }
    }

    let (begun, mut blocked) = tokio::sync::mpsc::unbounded_channel();
    let (go_on, end) = std::sync::mpsc::channel();
    let nodes = cluster_of(3).await;
    until("three voters", || {
        nodes.iter().all(|node| node.status().voters.len() == 3)
    })
    .await;
    let (leader, follower) = leader_and_follower(&nodes);
    let arbiter = actix::Arbiter::new();
    let blocker = Blocker::start_in_arbiter(&arbiter.handle(), |_| Blocker { begun, end });
    let blocking = leader
        .namespace::<Event>("blocking")
        .subscribe(blocker.recipient());
    blocking.ready().await.unwrap();
    let (_recorder, _) = Recorder::start_on(&leader, "numbers").await;
    let before = leader.status();

    let blocking_send = follower.namespace::<Event>("blocking").send(Event(1));
    blocked.recv().await.unwrap();
    let since = Instant::now();
    let numbers = follower.namespace::<Number>("numbers");
    let mut answered = 0;
    while answered < 100 || since.elapsed() < Duration::from_secs(5) {
        assert_eq!(numbers.send(Number(1)).await, Ok(2));
        answered += 1;
    }
    go_on.send(()).unwrap();
    assert_eq!(blocking_send.await, Ok(()));
    let after = leader.status();
    assert_eq!((after.term, after.leader), (before.term, before.leader));
    assert_eq!(after.nodes, before.nodes);
    drop(blocking);
    arbiter.stop();
    arbiter.join().unwrap();
    shut_down(nodes).await;
}

#[actix::test]
async fn a_node_can_live_in_a_server_that_the_user_has() {
    let address = free_address();
    let listener = tokio::net::TcpListener::bind(&address).await.unwrap();
    let first = builder().start().await.unwrap();
    let (second, routes) = Cluster::builder("unused")
        .advertise(&address)
        .peers([first.status().address])
        .build()
        .await
        .unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
    let server = tonic::transport::Server::builder()
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, async {
            let _ = stopped.await;
        });
    let server = actix::spawn(server);
    second.joined().await.unwrap();

    let (_recorder, _) = Recorder::start_on(&second, "numbers").await;
    let numbers = first.namespace::<Number>("numbers");
    assert_eq!(numbers.send(Number(21)).await, Ok(42));
    shut_down(vec![second, first]).await;
    stop.send(()).unwrap();
    server.await.unwrap().unwrap();
}
