//! The program: command line, logging, runtime, and then [`nodelet::app::run`] or one of the asking commands.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use nodelet::cli::{Cli, Command, ConfigCommand, DescribeKind, EXIT_USAGE, ExplainCommand, RunArgs, client, rewrite};
use nodelet::config::{self, Config, Only};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    spare_memory();
    nodelet::memory::set_limits();
    let cli = match Cli::try_parse_from(rewrite(std::env::args().collect())) {
        Ok(cli) => cli,
        Err(error) => {
            // Printing can fail only when nobody reads.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    // ring is the only provider; a second install could only fail because there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match &cli.command {
        Command::Run(args) => run(args, &cli.state_dir),
        Command::Config { command: ConfigCommand::Check(args) } => check(args, &cli.state_dir),
        Command::Version(args) => {
            println!("{}", nodelet::cli::version(args));
            ExitCode::SUCCESS
        }
        Command::Get(args) => ask(client::get(&cli.state_dir, args)),
        Command::Logs(args) => ask(client::logs(&cli.state_dir, args)),
        Command::Describe { kind: DescribeKind::Pod, name, namespace } => {
            ask(client::describe_pod(&cli.state_dir, namespace, name))
        }
        Command::Explain { command: ExplainCommand::Service(args) } => {
            ask(client::explain_service(&cli.state_dir, args))
        }
        Command::Gc(args) => ask(client::gc(&cli.state_dir, args)),
        Command::Cleanup => report(nodelet::app::cleanup()),
    }
}

/// No huge pages for this process: on a machine where the kernel gives them to everybody, two thirds of the agent's memory
/// were the untouched rest of 2 MiB pages (14 of 17 MiB anonymous at no pods). A kernel that cannot (before 3.15) is no
/// reason not to run.
fn spare_memory() {
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}

/// Two workers do for any node size, and blocking threads live shortly: both keep the memory low. Stacks stay at tokio's
/// 2 MiB, because only the pages that are touched count, and serde's generated code touches many in a debug build.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_keep_alive(Duration::from_secs(1))
        .enable_all()
        .build()
}

fn run(args: &RunArgs, state_dir: &std::path::Path) -> ExitCode {
    let Some(config) = load(args, state_dir) else { return ExitCode::from(EXIT_USAGE) };
    let logging = match config.only {
        Only::Both | Only::Pods => config.kubelet.logging,
        Only::Services => config.proxy.logging,
    };
    start_log(logging.json, args.v.max(logging.verbosity));
    nodelet::app::start_checks::hide_memory();
    match runtime() {
        Ok(runtime) => report(runtime.block_on(nodelet::app::run(config))),
        Err(error) => report(Err(error.into())),
    }
}

fn start_log(is_json: bool, verbosity: u8) {
    // Libraries speak only from 8 up: their frames drown what the agent has to say.
    let (own, others) = match verbosity {
        0..=3 => (LevelFilter::INFO, LevelFilter::WARN),
        4..=5 => (LevelFilter::DEBUG, LevelFilter::WARN),
        6..=7 => (LevelFilter::TRACE, LevelFilter::INFO),
        _ => (LevelFilter::TRACE, LevelFilter::TRACE),
    };
    let filter = Targets::new().with_default(others).with_target("nodelet", own);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    let lines = if is_json { lines.json().boxed() } else { lines.boxed() };
    tracing_subscriber::registry().with(lines).with(filter).init();
}

fn load(args: &RunArgs, state_dir: &std::path::Path) -> Option<Config> {
    match config::load(&args.flags(state_dir)) {
        Ok((config, warnings)) => {
            warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
            Some(config)
        }
        Err(errors) => {
            errors.iter().for_each(|error| eprintln!("error: {error}"));
            None
        }
    }
}

fn check(args: &RunArgs, state_dir: &std::path::Path) -> ExitCode {
    match load(args, state_dir) {
        Some(_) => {
            println!("configuration is valid");
            ExitCode::SUCCESS
        }
        None => ExitCode::from(EXIT_USAGE),
    }
}

fn ask(command: impl Future<Output = anyhow::Result<ExitCode>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(command));
    outcome.unwrap_or_else(|error| report(Err(error)))
}

fn report(outcome: anyhow::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
