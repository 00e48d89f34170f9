mod state_machine;
mod store;
mod types;
