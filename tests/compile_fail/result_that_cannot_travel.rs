use dchan::{Cluster, prelude::*};
use serde::{Deserialize, Serialize};

struct Receipt;

#[derive(Message, Serialize, Deserialize)]
#[rtype(result = "Receipt")]
struct Order;

fn send(cluster: &Cluster) {
    cluster.namespace::<Order>("orders");
}

fn main() {}
