//! Three nodes in one process, with real gRPC between them on loopback: a shop
//! orders, two warehouses deliver, and one of them leaves while orders flow.
//!
//! ```text
//! cargo run --release --example orders
//! ```

use std::{
    collections::BTreeMap,
    process::ExitCode,
    sync::{Arc, Mutex},
    time::Instant,
};

use dchan::{Cluster, Namespace, Registration, prelude::*};
use futures_util::{StreamExt, future::join_all};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// An order of anything. The receiver answers with its receipt.
#[derive(Message, Serialize, Deserialize)]
#[rtype(result = "Receipt")]
struct Order<T> {
    number: u32,
    item: T,
}

#[derive(Serialize, Deserialize)]
struct Receipt {
    warehouse: String,
}

#[derive(Serialize, Deserialize)]
struct Lamp {
    watts: u32,
}

/// Told by a warehouse to whoever listens.
#[derive(Message, Serialize, Deserialize)]
#[rtype(result = "()")]
struct Shipped {
    number: u32,
    warehouse: String,
}

/// What happened to an order.
#[derive(Clone, Default)]
struct Account {
    replied: Option<String>,
    accepted: bool,
    shipped: Vec<String>,
}

type Book = Arc<Mutex<BTreeMap<u32, Account>>>;

/// Receives orders on its node and says what it has shipped.
struct Warehouse<T: DeserializeOwned + Serialize + Send + Unpin + 'static> {
    name: String,
    orders: Namespace<Order<T>>,
    shipped: Namespace<Shipped>,
    registration: Option<Registration>,
}

impl<T: DeserializeOwned + Serialize + Send + Unpin + 'static> Actor for Warehouse<T> {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        self.registration = Some(self.orders.register::<Self>(ctx));
    }
}

impl<T: DeserializeOwned + Serialize + Send + Unpin + 'static> Handler<Order<T>> for Warehouse<T> {
    type Result = MessageResult<Order<T>>;

    fn handle(&mut self, order: Order<T>, _: &mut Context<Self>) -> Self::Result {
        self.shipped.do_send(Shipped {
            number: order.number,
            warehouse: self.name.clone(),
        });
        MessageResult(Receipt {
            warehouse: self.name.clone(),
        })
    }
}

/// Resolves when the warehouse is registered.
#[derive(Message)]
#[rtype(result = "()")]
struct Open;

impl<T: DeserializeOwned + Serialize + Send + Unpin + 'static> Handler<Open> for Warehouse<T> {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, _: Open, _: &mut Context<Self>) -> Self::Result {
        let registration = self.registration.take().expect("set when it started");
        let ready = async move {
            registration.ready().await.expect("the cluster agrees");
            registration
        };
        Box::pin(
            ready
                .into_actor(self)
                .map(|registration, warehouse, _| warehouse.registration = Some(registration)),
        )
    }
}

/// A plain actor that knows nothing of clusters: it has a `Recipient` to send
/// orders to, as it would have for an actor beside it.
struct Shop {
    orders: Recipient<Order<Lamp>>,
    book: Book,
}

impl Actor for Shop {
    type Context = Context<Self>;
}

/// Has the shop order lamps, and wait for all the receipts.
#[derive(Message)]
#[rtype(result = "()")]
struct Buy(std::ops::Range<u32>);

impl Handler<Buy> for Shop {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, Buy(numbers): Buy, _: &mut Context<Self>) -> Self::Result {
        let (orders, book) = (self.orders.clone(), self.book.clone());
        Box::pin(async move {
            for number in numbers {
                let item = Lamp { watts: 5 };
                if let Ok(receipt) = orders.send(Order { number, item }).await {
                    let mut book = book.lock().expect("nobody panics");
                    book.entry(number).or_default().replied = Some(receipt.warehouse);
                }
            }
        })
    }
}

#[actix::main]
async fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let start = Instant::now();
    let shop = Cluster::builder("127.0.0.1:0").start().await?;
    let peers = [shop.address()];
    let north = Cluster::builder("127.0.0.1:0").peers(peers).start().await?;
    let south = Cluster::builder("127.0.0.1:0").peers(peers).start().await?;
    println!("three nodes are up after {:.0?}", start.elapsed());

    let mut names = BTreeMap::from([(shop.node(), "shop")]);
    for (name, node) in [("north", &north), ("south", &south)] {
        let warehouse = Warehouse::<Lamp> {
            name: name.to_owned(),
            orders: node.namespace("orders"),
            shipped: node.namespace("shipped"),
            registration: None,
        };
        warehouse.start().send(Open).await?;
        names.insert(node.node(), name);
    }

    // The shop reads what was shipped as a stream.
    let book = Book::default();
    let mut shipped = shop.namespace::<Shipped>("shipped").receiver(64);
    shipped.ready().await?;
    let all = 900;
    let counting = actix::spawn({
        let book = book.clone();
        async move {
            for _ in 0..all {
                let Some(Shipped { number, warehouse }) = shipped.next().await else {
                    break;
                };
                let mut book = book.lock().expect("nobody panics");
                book.entry(number).or_default().shipped.push(warehouse);
            }
        }
    });

    let orders = shop.namespace::<Order<Lamp>>("orders");
    let clerk = Shop {
        orders: orders.recipient(),
        book: book.clone(),
    };
    let clerk = clerk.start();

    // A plain actor orders, one after the other, and gets its receipts.
    clerk.send(Buy(0..300)).await?;
    println!(
        "300 orders have been answered after {:.0?}",
        start.elapsed()
    );

    // Many at once, each confirmed by the node that has it.
    let order = |number| Order {
        number,
        item: Lamp { watts: 40 },
    };
    let accepted = join_all((300..600).map(|number| orders.deliver(order(number)))).await;
    let mut by_node = BTreeMap::<&str, u32>::new();
    for (number, node) in (300..).zip(accepted) {
        *by_node.entry(names[&node?]).or_default() += 1;
        let mut book = book.lock().expect("nobody panics");
        book.entry(number).or_default().accepted = true;
    }
    println!("300 orders have been accepted: {by_node:?}");

    // A warehouse leaves while orders flow.
    let last = actix::spawn({
        let clerk = clerk.clone();
        async move { clerk.send(Buy(600..900)).await }
    });
    let enough = || {
        let book = book.lock().expect("nobody panics");
        book.range(600..)
            .filter(|(_, account)| account.replied.is_some())
            .count()
            > 100
    };
    while !enough() {
        actix::clock::sleep(std::time::Duration::from_millis(1)).await;
    }
    south.shutdown().await?;
    println!("south has left after {:.0?}", start.elapsed());
    last.await??;
    counting.await?;

    let accounted = print_table(&book.lock().expect("nobody panics"), all);
    north.shutdown().await?;
    shop.shutdown().await?;
    println!("done after {:.0?}", start.elapsed());
    Ok(if accounted {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Prints who got what. Whether every order went to exactly one warehouse.
fn print_table(book: &BTreeMap<u32, Account>, all: u32) -> bool {
    let mut rows = BTreeMap::<&str, [u32; 3]>::new();
    for account in book.values() {
        for warehouse in &account.shipped {
            let row = rows.entry(warehouse).or_default();
            row[0] += u32::from(account.replied.as_ref() == Some(warehouse));
            row[1] += u32::from(account.accepted);
            row[2] += 1;
        }
    }
    println!(
        "\n{:<10} {:>9} {:>9} {:>9}",
        "warehouse", "answered", "accepted", "shipped"
    );
    let mut sums = [0; 3];
    for (name, row) in &rows {
        println!("{name:<10} {:>9} {:>9} {:>9}", row[0], row[1], row[2]);
        sums = [sums[0] + row[0], sums[1] + row[1], sums[2] + row[2]];
    }
    println!(
        "{:<10} {:>9} {:>9} {:>9}\n",
        "all", sums[0], sums[1], sums[2]
    );

    let once = |account: &Account| {
        account.shipped.len() == 1 && (account.replied.is_some() || account.accepted)
    };
    let accounted = book.len() == all as usize && book.values().all(once);
    println!(
        "{}",
        match accounted {
            true => format!("each of the {all} orders went to exactly one warehouse"),
            false => "orders are missing or were shipped twice".to_owned(),
        }
    );
    accounted
}
