//! What the nodes say of themselves: kept to be shown after a failure, and held
//! against what has to be true of the control plane at all times.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::{self, Write},
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};
use tracing_subscriber::{
    Layer,
    layer::Context,
    registry::{LookupSpan, SpanRef},
};

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
    leaders: BTreeMap<u64, String>,
    /// What each entry of the log has made of the state, and who said so first.
    applied: BTreeMap<u64, (String, u64, String)>,
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
        self.state().applied.len()
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

    /// One leader a term.
    fn leader(&mut self, fields: &Fields) {
        let (Some(leader), Some(term)) = (fields.get("leader"), fields.get("term")) else {
            return;
        };
        let known = self.leaders.entry(term.parse().unwrap());
        let known = known.or_insert_with(|| leader.to_owned());
        if known != leader {
            let violation = format!("two leaders in term {term}: {known} and {leader}");
            self.violations.push(violation);
        }
    }

    /// The same entry everywhere, and the same state after it.
    fn applied(&mut self, node: &str, fields: &Fields) {
        let entry = fields.get("entry").unwrap_or_default();
        let index = entry.rsplit(['-', '.']).next().unwrap_or_default();
        let mut digest = DefaultHasher::new();
        fields.0.hash(&mut digest);
        let outcome = (entry.to_owned(), digest.finish(), node.to_owned());
        let known = self.applied.entry(index.parse().unwrap());
        let (first, state, who) = known.or_insert_with(|| outcome.clone());
        if (&**first, *state) != (&*outcome.0, outcome.1) {
            let violation =
                format!("{who} and {node} disagree on what is applied: {first} and {fields:?}");
            self.violations.push(violation);
        }
    }
}

#[derive(Debug, Default)]
struct Fields(Vec<(&'static str, String)>);

impl Fields {
    fn get(&self, name: &str) -> Option<&str> {
        let field = self.0.iter().find(|(known, _)| *known == name);
        field.map(|(_, value)| &**value)
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
        if let (Some(name), Some(span)) = (fields.get("name"), ctx.span(id)) {
            span.extensions_mut().insert(Host(name.to_owned()));
        }
    }

    fn on_event(&self, event: &Event<'_>, ctx: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let node = ctx.event_span(event).and_then(host).unwrap_or_default();
        let mut state = self.state();
        match fields.get("message") {
            Some("applied") => return state.applied(&node, &fields),
            Some("leader changed") => state.leader(&fields),
            _ => {}
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
