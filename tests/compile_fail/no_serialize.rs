use dchan::{Cluster, prelude::*};

#[derive(Message)]
#[rtype(result = "()")]
struct Order;

fn send(cluster: &Cluster) {
    cluster.namespace::<Order>("orders");
}

fn main() {}
