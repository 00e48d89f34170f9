//! What the nodes say of themselves: kept to be shown after a failure, and handed
//! to those who check it.

use std::{
    collections::VecDeque,
    fmt::{self, Write},
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tracing::{Event, Level, Metadata, Subscriber, span};
use tracing_subscriber::{
    Layer,
    layer::Context,
    registry::{LookupSpan, SpanRef},
};

use crate::control::{Boot, Control, Fields};

/// How many events are kept to be shown.
const KEPT: usize = 400;

#[derive(Clone, Default)]
pub(crate) struct Watch {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    now: Duration,
    events: VecDeque<String>,
    count: u64,
    /// Of all the events so far.
    digest: DefaultHasher,
    control: Control,
    violations: Vec<String>,
}

impl Watch {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn set_now(&self, now: Duration) {
        self.state().now = now;
    }

    /// Notes what happens to the nodes.
    pub(crate) fn note(&self, event: impl fmt::Display) {
        self.state().keep(format!("== {event}"));
    }

    pub(crate) fn violated(&self, what: impl fmt::Display) {
        let mut state = self.state();
        state.keep(format!("!! {what}"));
        state.violations.push(what.to_string());
    }

    pub(crate) fn violations(&self) -> Vec<String> {
        self.state().violations.clone()
    }

    /// The last events, and what all of them amount to.
    pub(crate) fn events(&self) -> (Vec<String>, u64, u64) {
        let state = self.state();
        let events = state.events.iter().cloned().collect();
        (events, state.count, state.digest.finish())
    }

    /// How many entries of the log have been applied.
    pub(crate) fn applied(&self) -> usize {
        self.state().control.applied()
    }

    /// This process leaves the cluster.
    pub(crate) fn leaves(&self, boot: Boot) {
        self.state().control.dismiss(boot);
    }

    /// It does not receive the changing namespace any more.
    pub(crate) fn ceases(&self, boot: Boot) {
        self.state().control.ceases(boot);
    }

    /// The clock of a host leaps.
    pub(crate) fn leaps(&self, host: &str) {
        self.state().control.leaps(host);
    }
}

impl State {
    fn keep(&mut self, event: String) {
        let event = format!("{:>9.3} {event}", self.now.as_secs_f64());
        event.hash(&mut self.digest);
        self.count += 1;
        if self.events.len() == KEPT {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }
}

/// The host that a span of the simulation stands for.
struct Host(String);

fn host<'a, S: Subscriber + for<'l> LookupSpan<'l>>(span: SpanRef<'a, S>) -> Option<String> {
    span.scope()
        .find_map(|span| Some(span.extensions().get::<Host>()?.0.clone()))
}

impl<S: Subscriber + for<'l> LookupSpan<'l>> Layer<S> for Watch {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        let target = metadata.target();
        target.starts_with("dchan") || metadata.is_span() && target.starts_with("turmoil")
    }

    fn on_new_span(&self, attributes: &span::Attributes<'_>, id: &span::Id, ctx: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        let name = fields.get("name").to_owned();
        if let Some(span) = ctx.span(id)
            && !name.is_empty()
        {
            span.extensions_mut().insert(Host(name));
        }
    }

    fn on_event(&self, event: &Event<'_>, ctx: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let node = ctx.event_span(event).and_then(host).unwrap_or_default();
        let mut state = self.state();
        let now = state.now;
        if let Err(violation) = state.control.heed(now, &node, &fields) {
            state.violations.push(violation);
        }
        // Only what a person would look at.
        if *event.metadata().level() > Level::DEBUG {
            return;
        }
        let mut line = format!("{node} {:<5}", event.metadata().level());
        for (name, value) in &fields.0 {
            let _ = match *name {
                "message" => write!(line, " {value}"),
                _ => write!(line, " {name}={value}"),
            };
        }
        state.keep(line);
    }
}
