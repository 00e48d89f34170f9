//! Who receives what.

mod common;

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use common::*;
use dchan::{Namespace, Registration, prelude::*};
use futures_util::{StreamExt, future::join_all};
use tokio::sync::{Notify, mpsc};

#[actix::test]
async fn a_single_node_receives_what_it_sends() {
    let node = builder().start().await.unwrap();
    let (_recorder, seen) = Recorder::start_on(&node, "numbers").await;
    let numbers = node.namespace::<Number>("numbers");

    assert_eq!(numbers.send(Number(21)).await, Ok(42));
    assert_eq!(numbers.deliver(Number(2)).await, Ok(node.status().node));
    assert_eq!(received(&seen), [21, 2]);
    shut_down(vec![node]).await;
}

#[actix::test]
async fn the_leader_receives_from_all_nodes() {
    let nodes = cluster_of(3).await;
    let (leader, _) = leader_and_follower(&nodes);
    receives_from_all(&nodes, &leader).await;
    shut_down(nodes).await;
}

#[actix::test]
async fn a_follower_receives_from_all_nodes() {
    let nodes = cluster_of(3).await;
    let (_, follower) = leader_and_follower(&nodes);
    receives_from_all(&nodes, &follower).await;
    shut_down(nodes).await;
}

async fn receives_from_all(nodes: &[dchan::Cluster], receiver: &dchan::Cluster) {
    let (_recorder, seen) = Recorder::start_on(receiver, "numbers").await;
    for (number, node) in (1..).zip(nodes) {
        let numbers = node.namespace::<Number>("numbers");
        assert_eq!(numbers.send(Number(number)).await, Ok(2 * number));
    }
    assert_eq!(received(&seen), [1, 2, 3]);
}

#[actix::test]
async fn three_receivers_get_the_same_number_of_messages_in_order() {
    let nodes = cluster_of(3).await;
    let recorders = join_all(nodes.iter().map(|node| Recorder::start_on(node, "numbers"))).await;
    until_received(&nodes, "numbers", 3).await;

    // The sender receives too, and takes its turn.
    let numbers = nodes[0].namespace::<Number>("numbers");
    warm_up(&numbers, &recorders).await;
    let before: Vec<usize> = recorders.iter().map(|r| received(&r.1).len()).collect();
    let sent = join_all((0..3_000).map(|number| numbers.deliver(Number(number)))).await;
    assert!(sent.iter().all(Result::is_ok), "{sent:?}");

    let mut all = Vec::new();
    for ((_, seen), before) in recorders.iter().zip(before) {
        let seen = received(seen)[before..].to_vec();
        assert_eq!(seen.len(), 1_000);
        assert!(seen.is_sorted(), "out of order: {seen:?}");
        all.extend(seen);
    }
    all.sort_unstable();
    assert_eq!(all, (0..3_000).collect::<Vec<_>>());
    shut_down(nodes).await;
}

/// Sends until each receiver has got something: then all are ready.
async fn warm_up(numbers: &dchan::Namespace<Number>, recorders: &[(actix::Addr<Recorder>, Seen)]) {
    while recorders.iter().any(|(_, seen)| received(seen).is_empty()) {
        assert!(numbers.deliver(Number(0)).await.is_ok());
    }
}

#[actix::test]
async fn several_recipients_on_one_node_share_what_it_receives() {
    let node = builder().start().await.unwrap();
    let (_first, first) = Recorder::start_on(&node, "numbers").await;
    let (_second, second) = Recorder::start_on(&node, "numbers").await;
    let numbers = node.namespace::<Number>("numbers");
    for number in 0..10 {
        numbers.deliver(Number(number)).await.unwrap();
    }
    assert_eq!(received(&first).len(), 5);
    assert_eq!(received(&second).len(), 5);
    shut_down(vec![node]).await;
}

#[actix::test]
async fn a_recipient_that_comes_takes_what_another_one_has_no_room_for() {
    let node = builder().start().await.unwrap();
    let events = node.namespace::<Event>("events");
    let mut stalled = events.receiver(2);
    stalled.ready().await.unwrap();
    for number in 0..5 {
        events.do_send(Event(number));
    }
    let all_given = || node.status().traffic.under_way == 5;
    until("it has two, and the others wait", all_given).await;
    let mut other = events.receiver(2);
    for number in 2..5 {
        assert_eq!(other.next().await, Some(Event(number)));
    }
    for number in 0..2 {
        assert_eq!(stalled.next().await, Some(Event(number)));
    }
    drop((stalled, other));
    shut_down(vec![node]).await;
}

#[actix::test]
async fn any_recipient_can_subscribe() {
    struct Tripler;
    impl Actor for Tripler {
        type Context = Context<Self>;
    }
    impl Handler<Number> for Tripler {
        type Result = u64;
        fn handle(&mut self, Number(number): Number, _: &mut Self::Context) -> u64 {
            3 * number
        }
    }

    let nodes = cluster_of(2).await;
    let there = nodes[1].namespace::<Number>("numbers");
    let registration = there.subscribe(Tripler.start().recipient());
    registration.ready().await.unwrap();

    let numbers = nodes[0].namespace::<Number>("numbers");
    let replies = join_all((0..500).map(|number| numbers.send(Number(number)))).await;
    for (number, reply) in (0..).zip(replies) {
        assert_eq!(reply, Ok(3 * number));
    }
    registration.close().await.unwrap();
    until_received(&nodes, "numbers", 0).await;
    shut_down(nodes).await;
}

#[actix::test]
async fn a_subscription_ends_when_its_actor_is_found_stopped() {
    struct Mortal;
    impl Actor for Mortal {
        type Context = Context<Self>;
    }
    impl Handler<Number> for Mortal {
        type Result = u64;
        fn handle(&mut self, Number(number): Number, ctx: &mut Self::Context) -> u64 {
            ctx.stop();
            number
        }
    }

    let node = builder().start().await.unwrap();
    let numbers = node.namespace::<Number>("numbers");
    let addr = Mortal.start();
    numbers.subscribe(addr.clone().recipient()).detach();
    assert_eq!(numbers.send(Number(1)).await, Ok(1));
    until("the actor has stopped", || !addr.connected()).await;

    // The next message finds nobody, and goes to who comes later.
    let second = numbers.send(Number(2));
    let (_recorder, _) = Recorder::start_on(&node, "numbers").await;
    assert_eq!(second.await, Ok(4));
    shut_down(vec![node]).await;
}

#[actix::test]
async fn a_stream_receives_in_order() {
    let nodes = cluster_of(2).await;
    let mut events = nodes[1].namespace::<Event>("events").receiver(8);
    events.ready().await.unwrap();
    let sender = nodes[0].namespace::<Event>("events");
    for number in 0..5_000 {
        sender.do_send(Event(number));
    }
    for number in 0..5_000 {
        assert_eq!(events.next().await, Some(Event(number)));
    }
    events.close().await.unwrap();
    shut_down(nodes).await;
}

#[actix::test]
async fn a_registration_ends_with_its_actor() {
    let node = builder().start().await.unwrap();
    let (recorder, _) = Recorder::start_on(&node, "numbers").await;
    until_received(std::slice::from_ref(&node), "numbers", 1).await;
    recorder.do_send(Stop);
    until_received(std::slice::from_ref(&node), "numbers", 0).await;
    shut_down(vec![node]).await;
}

#[actix::test]
async fn a_dropped_receiver_is_unregistered_and_what_it_has_not_read_goes_elsewhere() {
    let nodes = cluster_of(2).await;
    let events = nodes[0].namespace::<Event>("events");
    let unread = nodes[1].namespace::<Event>("events").receiver(4);
    unread.ready().await.unwrap();
    let deliveries: Vec<_> = (0..100).map(|n| events.deliver(Event(n))).collect();
    until("they are under way", || {
        nodes[0].status().traffic.under_way == 100
    })
    .await;
    drop(unread);

    let mut reader = nodes[0].namespace::<Event>("events").receiver(4);
    for number in 0..100 {
        assert_eq!(reader.next().await, Some(Event(number)));
    }
    for delivery in deliveries {
        assert_eq!(delivery.await, Ok(nodes[0].status().node));
    }
    drop(reader);
    shut_down(nodes).await;
}

#[actix::test]
async fn what_an_actor_has_not_handled_when_it_ends_goes_elsewhere() {
    #[derive(Clone, Copy)]
    enum End {
        Unregister,
        Stop,
        Panic,
        WaitForEver,
    }
    struct Ending {
        events: Namespace<Event>,
        registration: Option<Registration>,
        handled: mpsc::UnboundedSender<u64>,
        end: End,
    }
    impl Actor for Ending {
        type Context = Context<Self>;
        fn started(&mut self, ctx: &mut Self::Context) {
            self.registration = Some(self.events.register::<Self>(ctx));
        }
    }
    impl Handler<Event> for Ending {
        type Result = ();
        fn handle(&mut self, Event(number): Event, ctx: &mut Self::Context) {
            let _ = self.handled.send(number);
            match self.end {
                _ if number < 3 => {}
                End::Unregister => self.registration = None,
                End::Stop => ctx.stop(),
                End::Panic => panic!("as it should"),
                End::WaitForEver => {
                    let ended = self.registration.take();
                    actix::spawn(async move { drop(ended) });
                    ctx.wait(pending().into_actor(self));
                }
            }
        }
    }

    for end in [End::Unregister, End::Stop, End::Panic, End::WaitForEver] {
        let nodes = cluster_of(2).await;
        let events = nodes[1].namespace::<Event>("events");
        let (handled, mut handles) = mpsc::unbounded_channel();
        let ending = Ending {
            events: nodes[0].namespace("events"),
            registration: None,
            handled,
            end,
        };
        let _ending = ending.start();
        until_received(&nodes, "events", 1).await;
        (0..100).for_each(|number| events.do_send(Event(number)));
        until_received(&nodes, "events", 0).await;
        let mut reader = events.receiver(4);
        for number in 4..100 {
            assert_eq!(reader.next().await, Some(Event(number)));
        }
        for number in 0..4 {
            assert_eq!(handles.recv().await, Some(number));
        }
        assert!(handles.try_recv().is_err(), "it handles no more");
        until("all is known", || nodes[1].status().traffic.under_way == 0).await;
        assert_eq!(nodes[1].status().traffic.accepted, 100);
        drop(reader);
        shut_down(nodes).await;
    }
}

#[actix::test]
async fn after_a_close_nothing_arrives_and_what_was_begun_is_done() {
    let nodes = cluster_of(2).await;
    let (closing, closed) = Recorder::start_on(&nodes[0], "numbers").await;
    let (_staying, _) = Recorder::start_on(&nodes[1], "numbers").await;
    until_received(&nodes, "numbers", 2).await;

    let numbers = nodes[1].namespace::<Number>("numbers");
    let requests: Vec<_> = (0..2_000).map(|n| numbers.send(Number(n))).collect();
    closing.send(Close).await.unwrap();
    let count = received(&closed).len();
    for (number, request) in (0..).zip(requests) {
        assert_eq!(request.await, Ok(2 * number));
    }
    for number in 0..100 {
        numbers.send(Number(number)).await.unwrap();
    }
    assert_eq!(received(&closed).len(), count);
    shut_down(nodes).await;
}

#[actix::test]
async fn a_close_waits_for_handlers_whose_result_nobody_wants() {
    struct Slow {
        events: Namespace<Event>,
        registration: Option<Registration>,
        begun: mpsc::UnboundedSender<()>,
        go_on: Arc<Notify>,
        done: Arc<AtomicBool>,
    }
    impl Actor for Slow {
        type Context = Context<Self>;
        fn started(&mut self, ctx: &mut Self::Context) {
            self.registration = Some(self.events.register::<Self>(ctx));
        }
    }
    impl Handler<Event> for Slow {
        type Result = ResponseFuture<()>;
        fn handle(&mut self, _: Event, _: &mut Self::Context) -> Self::Result {
            let _ = self.begun.send(());
            let (go_on, done) = (self.go_on.clone(), self.done.clone());
            Box::pin(async move {
                go_on.notified().await;
                done.store(true, Ordering::Relaxed);
            })
        }
    }
    impl Handler<Close> for Slow {
        type Result = ResponseFuture<()>;
        fn handle(&mut self, _: Close, _: &mut Self::Context) -> Self::Result {
            let registration = self.registration.take().expect("it closes once");
            Box::pin(async move { assert_eq!(registration.close().await, Ok(())) })
        }
    }

    let node = builder().start().await.unwrap();
    let nodes = [node.clone()];
    let events = node.namespace::<Event>("events");
    let (begun, mut beginning) = mpsc::unbounded_channel();
    let (go_on, done) = (Arc::new(Notify::new()), Arc::new(AtomicBool::new(false)));
    let actor = Slow {
        events: events.clone(),
        registration: None,
        begun,
        go_on: go_on.clone(),
        done: done.clone(),
    };
    let actor = actor.start();
    events.do_send(Event(1));
    beginning.recv().await.unwrap();
    let closing = actix::spawn(actor.send(Close));
    until_received(&nodes, "events", 0).await;
    assert!(!closing.is_finished());
    go_on.notify_one();
    closing.await.unwrap().unwrap();
    assert!(done.load(Ordering::Relaxed));
    shut_down(nodes.into()).await;
}

#[actix::test]
async fn a_second_registration_after_a_close_receives_again() {
    let nodes = cluster_of(2).await;
    let events = nodes[0].namespace::<Event>("events");
    for round in 0..5 {
        let mut receiver = nodes[1].namespace::<Event>("events").receiver(4);
        receiver.ready().await.unwrap();
        events.do_send(Event(round));
        assert_eq!(receiver.next().await, Some(Event(round)));
        receiver.close().await.unwrap();
    }
    shut_down(nodes).await;
}

#[actix::test]
async fn ten_thousand_namespaces_are_registered_together() {
    let nodes = cluster_of(3).await;
    let receivers: Vec<_> = (0..10_000)
        .map(|n| {
            nodes[1]
                .namespace::<Event>(&format!("events-{n}"))
                .receiver(1)
        })
        .collect();
    for receiver in &receivers {
        receiver.ready().await.unwrap();
    }
    assert_eq!(nodes[1].status().receivers.len(), 10_000);
    drop(receivers);
    shut_down(nodes).await;
}
