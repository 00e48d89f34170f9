//! What becomes of a message.

mod common;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use common::*;
use dchan::{DeliveryError, Runtime, prelude::*};
use futures_util::{FutureExt, SinkExt, StreamExt, future::poll_fn};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

#[actix::test]
async fn messages_wait_while_nobody_receives() {
    let nodes = cluster_of(2).await;
    let events = nodes[0].namespace::<Event>("events");
    for number in 0..100 {
        events.do_send(Event(number));
    }
    let last = events.deliver(Event(100));

    let mut receiver = nodes[1].namespace::<Event>("events").receiver(4);
    for number in 0..=100 {
        assert_eq!(receiver.next().await, Some(Event(number)));
    }
    assert_eq!(last.await, Ok(nodes[1].status().node));
    drop(receiver);
    shut_down(nodes).await;
}

#[actix::test]
async fn a_message_that_nobody_receives_by_its_deadline_is_not_delivered() {
    let node = builder().start().await.unwrap();
    let numbers = node.namespace::<Number>("numbers");
    let waited = Duration::from_millis(20);
    let error = numbers.send(Number(1)).timeout(waited).await.unwrap_err();
    assert_eq!(error, DeliveryError::NoReceiver { waited });
    assert!(!error.maybe_delivered());

    // It is gone: who comes later gets only what was sent later.
    let (_recorder, seen) = Recorder::start_on(&node, "numbers").await;
    numbers.send(Number(2)).await.unwrap();
    assert_eq!(received(&seen), [2]);
    shut_down(vec![node]).await;
}

#[actix::test]
async fn a_message_that_nobody_awaits_becomes_a_dead_letter_at_its_deadline() {
    let node = builder()
        .send_timeout(Duration::from_millis(20))
        .start()
        .await
        .unwrap();
    node.namespace::<Event>("events").do_send(Event(1));
    until("it is a dead letter", || {
        node.status().traffic.dead_letters.total() == 1
    })
    .await;
    assert_eq!(node.status().traffic.waiting, 0);
    shut_down(vec![node]).await;
}

/// An actor that takes messages and never answers.
struct Silent;

impl Actor for Silent {
    type Context = Context<Self>;
}

impl Handler<Number> for Silent {
    type Result = ResponseFuture<u64>;

    fn handle(&mut self, _: Number, _: &mut Self::Context) -> Self::Result {
        Box::pin(std::future::pending())
    }
}

#[actix::test]
async fn a_reply_that_does_not_come_in_time_leaves_the_outcome_unknown() {
    let nodes = cluster_of(2).await;
    let silent = nodes[1].namespace::<Number>("numbers");
    let registration = silent.subscribe(Silent.start().recipient());
    registration.ready().await.unwrap();

    let numbers = nodes[0].namespace::<Number>("numbers");
    assert_eq!(numbers.deliver(Number(1)).await, Ok(nodes[1].status().node));
    let waited = Duration::from_millis(100);
    let request = numbers.send(Number(2));
    // What comes after it is there, so it has left this node.
    assert_eq!(numbers.deliver(Number(3)).await, Ok(nodes[1].status().node));
    let error = request.timeout(waited).await.unwrap_err();
    let maybe_delivered = true;
    assert_eq!(
        error,
        DeliveryError::Timeout {
            waited,
            maybe_delivered
        }
    );
    drop(registration);
    // The handlers never end, and a shutdown does not wait for them for ever.
    drop(nodes);
}

#[actix::test]
async fn a_message_whose_actor_stops_before_it_replies_is_lost() {
    struct Quitter {
        numbers: dchan::Namespace<Number>,
    }
    impl Actor for Quitter {
        type Context = Context<Self>;
        fn started(&mut self, ctx: &mut Self::Context) {
            self.numbers.register::<Self>(ctx).detach();
        }
    }
    impl Handler<Number> for Quitter {
        type Result = ResponseActFuture<Self, u64>;
        fn handle(&mut self, _: Number, ctx: &mut Self::Context) -> Self::Result {
            ctx.stop();
            Box::pin(std::future::pending().into_actor(self))
        }
    }

    let nodes = cluster_of(2).await;
    let numbers = nodes[1].namespace("numbers");
    Quitter { numbers }.start();
    let error = nodes[0]
        .namespace::<Number>("numbers")
        .send(Number(1))
        .await
        .unwrap_err();
    let there = nodes[1].status().node;
    assert!(
        matches!(&error, DeliveryError::Lost { node, .. } if *node == there),
        "{error:?}"
    );
    assert!(error.maybe_delivered());
    shut_down(nodes).await;
}

#[actix::test]
async fn a_reader_that_takes_nothing_stops_the_sender_and_loses_nothing() {
    let reading = builder().window(64).start().await.unwrap();
    let sending = builder()
        .peers([reading.status().address])
        .outbox(100, usize::MAX)
        .start()
        .await
        .unwrap();
    let mut receiver = reading.namespace::<Event>("events").receiver(8);
    receiver.ready().await.unwrap();
    let events = sending.namespace::<Event>("events");

    // A window's worth is under way, and an outbox full waits.
    let mut taken = 0;
    while taken < 164 {
        match events.try_send(Event(taken)) {
            Ok(()) => taken += 1,
            Err(SendError::Full(Event(number))) => {
                assert_eq!(number, taken);
                until("the window is used", || {
                    sending.status().traffic.under_way == 64
                })
                .await;
            }
            Err(SendError::Closed(_)) => panic!("the node is up"),
        }
    }
    until("the window is used", || {
        sending.status().traffic.under_way == 64
    })
    .await;
    assert!(matches!(events.try_send(Event(0)), Err(SendError::Full(_))));
    let mut sink = events.sink();
    assert!(sink.feed(Event(0)).now_or_never().is_none());
    let mut waiting = events.deliver(Event(taken));
    assert!((&mut waiting).now_or_never().is_none());
    events.do_send(Event(0));
    assert_eq!(sending.status().traffic.dead_letters.total(), 1);

    for number in 0..=taken {
        assert_eq!(receiver.next().await, Some(Event(number)));
    }
    assert_eq!(waiting.await, Ok(reading.status().node));
    sink.send(Event(1_000)).await.unwrap();
    assert_eq!(receiver.next().await, Some(Event(1_000)));
    drop(receiver);
    shut_down(vec![sending, reading]).await;
}

#[actix::test]
async fn a_stalled_receiver_costs_the_others_nothing() {
    let nodes = cluster_of(3).await;
    let stalled = nodes[1].namespace::<Event>("events").receiver(1);
    let mut reading = nodes[2].namespace::<Event>("events").receiver(16);
    stalled.ready().await.unwrap();
    reading.ready().await.unwrap();
    until_received(&nodes, "events", 2).await;

    let events = nodes[0].namespace::<Event>("events");
    for number in 0..20_000 {
        events.do_send(Event(number));
    }
    // What the stalled one does not hold, at most its window, arrives.
    let mut read = 0;
    while read < 20_000 - 8_192 {
        assert!(reading.next().await.is_some());
        read += 1;
    }
    drop(stalled);
    while read < 20_000 {
        assert!(reading.next().await.is_some());
        read += 1;
    }
    drop(reading);
    shut_down(nodes).await;
}

#[actix::test]
async fn what_is_returned_keeps_its_place_among_those_that_wait() {
    let reading = builder().window(64).start().await.unwrap();
    let peers = [reading.status().address];
    let sending = builder().peers(peers).start().await.unwrap();
    let theirs = reading.namespace::<Event>("events");
    let stalled = theirs.receiver(4);
    stalled.ready().await.unwrap();
    let events = sending.namespace::<Event>("events");
    for number in 0..200 {
        events.do_send(Event(number));
    }
    until("the window is used", || {
        sending.status().traffic.under_way == 64
    })
    .await;

    // All that it holds goes back, and waits in front of the others.
    stalled.close().await.unwrap();
    until("all has come back", || {
        sending.status().traffic.waiting == 200
    })
    .await;
    let mut receiver = theirs.receiver(4);
    for number in 0..200 {
        assert_eq!(receiver.next().await, Some(Event(number)));
    }
    drop(receiver);
    shut_down(vec![sending, reading]).await;
}

#[actix::test]
async fn a_message_that_was_given_up_is_not_offered_again() {
    let nodes = cluster_of(2).await;
    let theirs = nodes[1].namespace::<Event>("events");
    let stalled = theirs.receiver(1);
    stalled.ready().await.unwrap();
    let events = nodes[0].namespace::<Event>("events");
    let given_up = events.deliver(Event(1));
    until("it is under way", || {
        nodes[0].status().traffic.under_way == 1
    })
    .await;
    // What goes over the same link after it is there, so it has left this node.
    let (_recorder, _) = Recorder::start_on(&nodes[1], "numbers").await;
    let numbers = nodes[0].namespace::<Number>("numbers");
    assert_eq!(numbers.send(Number(1)).await, Ok(2));
    let given_up = given_up.timeout(Duration::from_millis(50));
    assert!(given_up.await.unwrap_err().maybe_delivered());

    // It comes back unread, but its sender may have sent it again by now.
    stalled.close().await.unwrap();
    let mut receiver = theirs.receiver(1);
    let next = events.deliver(Event(2));
    assert_eq!(receiver.next().await, Some(Event(2)));
    next.await.unwrap();
    drop(receiver);
    shut_down(nodes).await;
}

#[actix::test]
async fn a_message_that_has_failed_is_not_offered_again_with_more_time() {
    let nodes = cluster_of(2).await;
    let theirs = nodes[1].namespace::<Blob>("blobs");
    let stalled = theirs.receiver(1);
    stalled.ready().await.unwrap();
    let (_recorder, _) = Recorder::start_on(&nodes[1], "numbers").await;
    let blobs = nodes[0].namespace::<Blob>("blobs");
    let failing = blobs.deliver(Blob(vec![1; 1000]));
    let behind = blobs.deliver(Blob(vec![2]));
    // What goes over the same link after them is there, so they have left this node.
    let numbers = nodes[0].namespace::<Number>("numbers");
    assert_eq!(numbers.send(Number(1)).await, Ok(2));
    let failing = failing.timeout(Duration::ZERO);
    until("it has failed", || nodes[0].status().traffic.unknown == 1).await;
    let failed = failing.timeout(Duration::from_secs(60));

    stalled.close().await.unwrap();
    let mut receiver = theirs.receiver(4);
    assert_eq!(receiver.next().await, Some(Blob(vec![2])));
    behind.await.unwrap();
    assert!(failed.await.unwrap_err().maybe_delivered());
    let last = blobs.deliver(Blob(vec![3]));
    assert_eq!(receiver.next().await, Some(Blob(vec![3])));
    last.await.unwrap();
    drop(receiver);
    shut_down(nodes).await;
}

#[actix::test]
async fn what_comes_back_after_its_deadline_is_not_offered_again() {
    let timeout = Duration::from_millis(100);
    let first = builder().send_timeout(timeout).start().await.unwrap();
    let peer = [first.status().address];
    let second = builder().peers(peer).start().await.unwrap();
    let events = first.namespace::<Event>("events");
    let stalled = events.receiver(8);
    stalled.ready().await.unwrap();
    for number in 0..3 {
        events.do_send(Event(number));
    }
    until("it has them", || first.status().traffic.under_way == 3).await;
    let sent = Instant::now();
    while sent.elapsed() <= timeout {
        actix_rt::time::sleep(timeout).await;
    }
    let mut other = second.namespace::<Event>("events").receiver(8);
    other.ready().await.unwrap();
    // Until one gets there: from then on it takes what comes back.
    let mut next = 3;
    let arrived = loop {
        events.do_send(Event(next));
        next += 1;
        let patience = Duration::from_millis(10);
        if let Ok(arrived) = actix_rt::time::timeout(patience, other.next()).await {
            break arrived.unwrap();
        }
    };
    assert!(arrived.0 >= 3);
    stalled.close().await.unwrap();
    assert!(first.status().traffic.dead_letters.timeout >= 3);
    let minute = Duration::from_secs(60);
    let last = events.deliver(Event(next)).timeout(minute);
    loop {
        let Event(number) = other.next().await.unwrap();
        assert!(number >= 3, "the deadline of {number} is over");
        if number == next {
            break;
        }
    }
    last.await.unwrap();
    drop(other);
    shut_down(vec![first, second]).await;
}

/// Does something when it is dropped.
#[derive(Default, Message, Serialize, Deserialize)]
#[rtype(result = "()")]
struct Parting {
    #[serde(skip)]
    last: Option<Box<dyn FnOnce() + Send>>,
}

impl Drop for Parting {
    fn drop(&mut self) {
        if let Some(last) = self.last.take() {
            last();
        }
    }
}

#[actix::test]
async fn a_message_may_send_another_one_when_it_is_dropped() {
    let node = builder().window(1).start().await.unwrap();
    let partings = node.namespace::<Parting>("partings");
    let mut receiver = partings.receiver(1);
    receiver.ready().await.unwrap();
    partings.do_send(Parting::default());
    // It waits behind that one, and is given up at its deadline.
    let namespace = partings.clone();
    let sends = move || namespace.do_send(Parting::default());
    let late = partings.deliver(Parting {
        last: Some(Box::new(sends)),
    });
    let late = late.timeout(Duration::from_millis(50)).await;
    assert!(
        matches!(late, Err(DeliveryError::Timeout { .. })),
        "{late:?}"
    );
    assert!(receiver.next().await.is_some());
    assert!(receiver.next().await.is_some(), "what it sent has arrived");
    drop((receiver, partings));
    shut_down(vec![node]).await;
}

#[actix::test]
async fn a_message_may_ask_its_node_when_it_is_dropped_for_its_type_is_another_one() {
    let node = builder().window(1).start().await.unwrap();
    let other = builder().peers([node.address()]).start().await.unwrap();
    let partings = node.namespace::<Parting>("partings");
    let receiver = partings.receiver(1);
    let is_known = || other.status().receivers.contains_key("partings");
    until("the other node has heard of the receiver", is_known).await;
    partings.do_send(Parting::default());
    // It waits as it is, for a recipient of this node.
    let asked = node.clone();
    let asks = move || assert_eq!(asked.status().nodes.len(), 2);
    let refused = partings.deliver(Parting {
        last: Some(Box::new(asks)),
    });
    receiver.close().await.unwrap();
    until("the other node has heard of its end", || !is_known()).await;
    let events = other.namespace::<Event>("partings").receiver(1);
    events.ready().await.unwrap();
    let refused = refused.await;
    assert!(
        matches!(refused, Err(DeliveryError::Rejected { .. })),
        "{refused:?}"
    );
    drop((events, partings));
    shut_down(vec![node, other]).await;
}

/// Is answered with something that sends when it is dropped.
#[derive(Message, Serialize, Deserialize)]
#[rtype(result = "Result<Parting, String>")]
struct Part;

#[actix::test]
async fn a_reply_that_nobody_waits_for_may_send_when_it_is_dropped() {
    struct Partner {
        /// For the first one.
        parting: Option<(Parting, Arc<Notify>)>,
    }
    impl Actor for Partner {
        type Context = Context<Self>;
    }
    impl Handler<Part> for Partner {
        type Result = ResponseFuture<Result<Parting, String>>;
        fn handle(&mut self, _: Part, _: &mut Self::Context) -> Self::Result {
            let parting = self.parting.take();
            Box::pin(async move {
                let Some((parting, go_on)) = parting else {
                    return Ok(Parting::default());
                };
                go_on.notified().await;
                Ok(parting)
            })
        }
    }

    let node = builder().start().await.unwrap();
    let parts = node.namespace::<Part>("parts");
    let (namespace, go_on) = (parts.clone(), Arc::new(Notify::new()));
    let sends = move || namespace.do_send(Part);
    let parting = Parting {
        last: Some(Box::new(sends)),
    };
    let partner = Partner {
        parting: Some((parting, go_on.clone())),
    };
    let registration = parts.subscribe(partner.start().recipient());
    registration.ready().await.unwrap();
    let late = parts.send(Part).timeout(Duration::from_millis(50)).await;
    assert!(late.is_err_and(|error| error.maybe_delivered()));
    go_on.notify_one();
    until("what it sent has arrived", || {
        node.status().traffic.accepted == 1
    })
    .await;
    drop((registration, parts));
    shut_down(vec![node]).await;
}

#[actix::test]
async fn a_plain_recipient_sends_to_the_namespace() {
    let nodes = cluster_of(2).await;
    let (_recorder, seen) = Recorder::start_on(&nodes[1], "numbers").await;
    let recipient: Recipient<Number> = nodes[0].namespace("numbers").recipient();
    assert_eq!(recipient.send(Number(4)).await, Ok(8));
    recipient.do_send(Number(5));
    recipient.try_send(Number(6)).unwrap();
    assert_eq!(recipient.send(Number(7)).await, Ok(14));
    assert_eq!(received(&seen), [4, 5, 6, 7]);
    shut_down(nodes).await;
}

#[actix::test]
async fn a_plain_recipient_has_the_room_of_the_outbox_from_the_start() {
    let node = builder().runtime(Runtime::CurrentArbiter).start();
    let node = node.await.unwrap();
    let numbers = node.namespace::<Number>("numbers");
    let recipient = numbers.recipient();
    for number in 0..1_000 {
        recipient.try_send(Number(number)).unwrap();
    }
    let (_recorder, seen) = Recorder::start_on(&node, "numbers").await;
    until("all have arrived", || received(&seen).len() == 1_000).await;
    shut_down(vec![node]).await;
}

#[actix::test]
async fn generic_messages_travel() {
    #[derive(Message, Serialize, Deserialize)]
    #[rtype(result = "T")]
    struct Echo<T: 'static>(T);

    struct Wall;
    impl Actor for Wall {
        type Context = Context<Self>;
    }
    impl<T: Send + 'static> Handler<Echo<T>> for Wall {
        type Result = MessageResult<Echo<T>>;
        fn handle(&mut self, Echo(value): Echo<T>, _: &mut Self::Context) -> Self::Result {
            MessageResult(value)
        }
    }

    let nodes = cluster_of(2).await;
    let wall = Wall.start();
    let there = &nodes[1];
    let words = there.namespace::<Echo<String>>("words");
    let pairs = there.namespace::<Echo<(u8, Option<f64>)>>("pairs");
    let words = words.subscribe(wall.clone().recipient());
    let pairs = pairs.subscribe(wall.recipient());

    let here = &nodes[0];
    let word = here.namespace("words").send(Echo("hello".to_owned())).await;
    assert_eq!(word.unwrap(), "hello");
    let pair = here.namespace("pairs").send(Echo((7_u8, Some(0.5)))).await;
    assert_eq!(pair.unwrap(), (7, Some(0.5)));
    drop((words, pairs));
    shut_down(nodes).await;
}

/// A message that can be handed over and not encoded.
#[derive(Debug, Message, Deserialize)]
#[rtype(result = "()")]
struct Unspeakable;

impl Serialize for Unspeakable {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("it must not be said"))
    }
}

#[actix::test]
async fn a_message_to_its_own_node_is_not_encoded() {
    let node = builder().start().await.unwrap();
    let secrets = node.namespace::<Unspeakable>("secrets");
    // While nobody receives, it may have to go to another one.
    let error = secrets.deliver(Unspeakable).await.unwrap_err();
    assert!(matches!(error, DeliveryError::Encode { .. }));
    let mut receiver = secrets.receiver(4);
    receiver.ready().await.unwrap();
    for _ in 0..3_000 {
        secrets.do_send(Unspeakable);
    }
    for _ in 0..3_000 {
        assert!(receiver.next().await.is_some());
    }
    drop(receiver);
    shut_down(vec![node]).await;
}

#[actix::test]
async fn a_message_that_does_not_encode_is_not_delivered_and_harms_nobody() {
    let nodes = cluster_of(2).await;
    let receiver = nodes[1].namespace::<Unspeakable>("secrets").receiver(4);
    receiver.ready().await.unwrap();
    until_received(&nodes, "secrets", 1).await;
    let error = nodes[0]
        .namespace("secrets")
        .deliver(Unspeakable)
        .await
        .unwrap_err();
    assert!(matches!(&error, DeliveryError::Encode { reason } if reason.contains("must not")));
    assert!(!error.maybe_delivered());
    drop(receiver);
    shut_down(nodes).await;
}

#[derive(Debug, PartialEq, Message, Serialize, Deserialize)]
#[rtype(result = "()")]
struct Blob(#[serde(with = "serde_bytes")] Vec<u8>);

async fn two_nodes_with_messages_up_to(limit: usize) -> (dchan::Cluster, dchan::Cluster) {
    let builder = || builder().max_message(limit);
    let first = builder().start().await.expect("a node alone");
    let peers = [first.status().address];
    let second = builder().peers(peers).start().await;
    (first, second.expect("a node beside another one"))
}

#[actix::test]
async fn large_messages_arrive_up_to_the_limit() {
    let limit = 9 << 20;
    let (reading, sending) = two_nodes_with_messages_up_to(limit).await;
    let mut receiver = reading.namespace::<Blob>("blobs").receiver(4);
    receiver.ready().await.unwrap();
    let blobs = sending.namespace::<Blob>("blobs");

    let delivery = blobs.deliver(Blob(vec![7; 8 << 20]));
    assert_eq!(receiver.next().await, Some(Blob(vec![7; 8 << 20])));
    delivery.await.unwrap();

    let error = blobs.deliver(Blob(vec![7; 10 << 20])).await.unwrap_err();
    assert!(
        matches!(error, DeliveryError::TooLarge { size, limit: l } if size > l && l == limit),
        "{error:?}"
    );
    drop(receiver);
    shut_down(vec![sending, reading]).await;
}

#[actix::test]
async fn the_largest_message_travels_in_the_midst_of_small_ones() {
    let limit = 64 << 10;
    let (reading, sending) = two_nodes_with_messages_up_to(limit).await;
    let mut receiver = reading.namespace::<Blob>("blobs").receiver(4);
    receiver.ready().await.unwrap();
    let blobs = sending.namespace::<Blob>("blobs");
    // An array of one and the head of the bytes take four bytes.
    let size = |number| if number % 500 == 0 { limit - 4 } else { 1 };
    for number in 0..2_000 {
        blobs.do_send(Blob(vec![7; size(number)]));
    }
    for number in 0..2_000 {
        let Blob(bytes) = receiver.next().await.unwrap();
        assert_eq!(bytes.len(), size(number));
    }
    drop(receiver);
    assert_eq!(sending.status().traffic.dead_letters.total(), 0);
    shut_down(vec![sending, reading]).await;
}

#[actix::test]
async fn a_reply_that_is_too_large_fails_alone() {
    #[derive(Message, Serialize, Deserialize)]
    #[rtype(result = "String")]
    struct Repeat(usize);

    struct Parrot;
    impl Actor for Parrot {
        type Context = Context<Self>;
    }
    impl Handler<Repeat> for Parrot {
        type Result = String;
        fn handle(&mut self, Repeat(times): Repeat, _: &mut Self::Context) -> String {
            "a".repeat(times)
        }
    }

    let (replying, asking) = two_nodes_with_messages_up_to(64 << 10).await;
    let registration = replying
        .namespace::<Repeat>("words")
        .subscribe(Parrot.start().recipient());
    registration.ready().await.unwrap();
    let words = asking.namespace::<Repeat>("words");
    let too_large = words.send(Repeat(1 << 20));
    let next = words.send(Repeat(3));
    let error = too_large.await.unwrap_err();
    assert!(
        matches!(&error, DeliveryError::Lost { reason, .. } if reason.contains("its reply of")),
        "{error:?}"
    );
    assert!(error.maybe_delivered());
    assert_eq!(next.await, Ok("aaa".to_owned()));
    drop(registration);
    shut_down(vec![asking, replying]).await;
}

#[actix::test]
async fn an_undecodable_message_is_rejected_and_the_next_one_arrives() {
    #[derive(Debug, PartialEq, Message, Serialize, Deserialize)]
    #[rtype(result = "()")]
    struct Text(String);

    let nodes = cluster_of(2).await;
    // The labels say that it is the same type, and are wrong.
    let theirs = nodes[1].try_namespace_labelled::<Text>("events", "Same");
    let mut receiver = theirs.unwrap().receiver(4);
    receiver.ready().await.unwrap();
    let events = nodes[0]
        .try_namespace_labelled::<Either>("events", "Same")
        .unwrap();

    let undecodable = events.deliver(Either::Number(7));
    let next = events.deliver(Either::Text("hello".to_owned()));
    assert_eq!(receiver.next().await, Some(Text("hello".to_owned())));
    next.await.unwrap();
    let error = undecodable.await.unwrap_err();
    assert!(
        matches!(&error, DeliveryError::Rejected { reason } if reason.contains("Text")),
        "{error:?}"
    );
    assert!(!error.maybe_delivered());
    drop(receiver);
    shut_down(nodes).await;
}

#[derive(Message, Serialize, Deserialize)]
#[rtype(result = "()")]
#[serde(untagged)]
enum Either {
    Number(u64),
    Text(String),
}

#[actix::test]
async fn a_namespace_of_another_type_is_an_error_that_names_both() {
    let nodes = cluster_of(2).await;
    let (_recorder, _) = Recorder::start_on(&nodes[0], "things").await;
    until_received(&nodes, "things", 1).await;

    let others = nodes[1].namespace::<Event>("things");
    let receiver = others.receiver(4);
    let error = receiver.ready().await.unwrap_err().to_string();
    assert!(
        error.contains("Number") && error.contains("Event"),
        "{error}"
    );
    let error = others.deliver(Event(1)).await.unwrap_err();
    assert!(
        matches!(&error, DeliveryError::Rejected { reason }
            if reason.contains("Number") && reason.contains("Event")),
        "{error:?}"
    );
    drop(receiver);
    shut_down(nodes).await;
}

#[actix::test]
async fn a_namespace_has_one_type_on_a_node() {
    let node = builder().start().await.unwrap();
    let _events = node.namespace::<Event>("x");
    let error = node.try_namespace::<Number>("x").unwrap_err().to_string();
    assert!(
        error.contains("Event") && error.contains("Number"),
        "{error}"
    );
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        node.namespace::<Number>("x")
    }));
    assert!(panic.is_err());
    assert!(node.try_namespace::<Event>("").is_err());
    assert!(node.try_namespace::<Event>(&"x".repeat(256)).is_err());
    // And the node is none the worse for it.
    assert!(node.try_namespace::<Event>("x").is_ok());
    shut_down(vec![node]).await;
}

#[actix::test]
async fn a_flushed_sink_has_handed_everything_over() {
    let nodes = cluster_of(2).await;
    let mut receiver = nodes[1].namespace::<Event>("events").receiver(4);
    receiver.ready().await.unwrap();
    let mut sink = nodes[0].namespace::<Event>("events").sink();
    for number in 0..100 {
        sink.feed(Event(number)).await.unwrap();
    }
    sink.close().await.unwrap();
    assert_eq!(nodes[0].status().traffic.waiting, 0);
    for number in 0..100 {
        assert_eq!(receiver.next().await, Some(Event(number)));
    }
    drop(receiver);
    shut_down(nodes).await;
}

#[actix::test]
async fn after_a_shutdown_sending_fails_as_closed() {
    let node = builder().start().await.unwrap();
    let numbers = node.namespace::<Number>("numbers");
    node.shutdown().await.unwrap();
    assert!(matches!(
        numbers.try_send(Number(1)),
        Err(SendError::Closed(Number(1)))
    ));
    assert_eq!(numbers.send(Number(1)).await, Err(DeliveryError::Closed));
    assert_eq!(numbers.deliver(Number(1)).await, Err(DeliveryError::Closed));
    let mut sink = numbers.sink();
    assert!(poll_fn(|cx| sink.poll_ready_unpin(cx)).await.is_ok());
    assert!(sink.start_send_unpin(Number(1)).is_err());
    assert!(numbers.recipient().send(Number(1)).await.is_err());
}
