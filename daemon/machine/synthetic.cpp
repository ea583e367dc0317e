// SPDX-License-Identifier: Apache-2.0
#include "daemon/machine/synthetic.hpp"

#include "daemon/machine/synthetic_verify.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/random.h>

#include <algorithm>
#include <array>
#include <thread>

namespace migrationd {

using synthetic::GuestShape;
using synthetic::page_number;
using synthetic::PageIdentity;
using synthetic::PagePlaces;
using synthetic::write_page;

namespace {

constexpr std::size_t ram_block = 0;
constexpr std::size_t rom_block = 1;
constexpr std::uint32_t first_device_section = 2;
// More do not fill faster: the kernel's page clearing is the limit.
constexpr unsigned fill_threads_max = 4;

Result<std::string> make_instance() {
  std::array<std::uint8_t, 16> raw{};
  if (::getrandom(raw.data(), raw.size(), 0) != static_cast<ssize_t>(raw.size())) {
    return Error::from_errno("make an instance id");
  }
  raw[6] = static_cast<std::uint8_t>((raw[6] & 0x0fU) | 0x40U);  // a random UUID (RFC 4122, version 4)
  raw[8] = static_cast<std::uint8_t>((raw[8] & 0x3fU) | 0x80U);
  std::string out;
  for (std::size_t i = 0; i < raw.size(); ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) out.push_back('-');
    out += fmt::format("{:02x}", raw[i]);
  }
  return out;
}

Result<UniqueFd> open_log(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644));
  if (!fd) return Error::from_errno(fmt::format("open the guest's log '{}'", printable(path, path.size())));
  return fd;
}

}  // namespace

Result<std::unique_ptr<SyntheticMachine>> SyntheticMachine::begin(const SyntheticOptions& options) {
  std::unique_ptr<SyntheticMachine> machine(new SyntheticMachine);
  machine->configuration_.machine_name = std::string(synthetic_machine_name);
  MD_TRY(machine->instance_, make_instance());
  if (!options.log.empty()) {
    MD_TRY(machine->log_, open_log(options.log));
  }
  if (!options.blocked.empty()) MD_CHECK(machine->blockers_.add(options.blocked));
  return machine;
}

// The guest as the options say, without content.
void SyntheticMachine::settle(const SyntheticOptions& options) {
  synthetic::Devices devices;
  devices.guest.ram_bytes = options.ram;
  devices.guest.page_bytes = static_cast<std::uint32_t>(options.page_size);
  devices.guest.working_bytes = options.working_set;
  devices.guest.touched_bytes = options.touched;
  devices.guest.dirty_rate = options.dirty_rate;
  devices.guest.seed = options.seed;
  devices.guest.threads = options.threads;
  devices.settle();
  adopt(std::move(devices));
}

Result<std::unique_ptr<SyntheticMachine>> SyntheticMachine::create(const SyntheticOptions& options,
                                                                   SyntheticStart start,
                                                                   std::optional<stream::Uuid> uuid) {
  MD_TRY(auto machine, begin(options));
  machine->configuration_.uuid = std::move(uuid);
  auto made = machine->make_memory(options);
  if (!made) return std::move(made).error().with("make the synthetic machine");
  machine->settle(options);
  machine->has_guest_ = start == SyntheticStart::filled;
  if (machine->has_guest_) machine->fill();
  return machine;
}

Result<std::unique_ptr<SyntheticMachine>> SyntheticMachine::create_over(
    const SyntheticOptions& options, std::vector<cpr::NamedDescriptor>& descriptors) {
  MD_TRY(auto machine, begin(options));
  auto taken = machine->take_memory(options, descriptors);
  if (!taken) return std::move(taken).error().with("take the synthetic machine over");
  machine->settle(options);
  return machine;
}

Result<void> SyntheticMachine::make_memory(const SyntheticOptions& options) {
  page_size_ = options.page_size;
  MD_TRY(auto memory, ram::RamBlock::create(std::string(synthetic_ram_name), options.ram, options.page_size));
  MD_TRY(auto rom, ram::RamBlock::create(std::string(synthetic_rom_name), synthetic_rom_bytes, ram::page_size));
  if (options.prealloc) MD_CHECK(memory->populate());
  MD_CHECK(ram_.add(std::move(memory)));
  MD_CHECK(ram_.add(std::move(rom)));
  return watch_memory(options);
}

Result<void> SyntheticMachine::take_memory(const SyntheticOptions& options,
                                           std::vector<cpr::NamedDescriptor>& descriptors) {
  page_size_ = options.page_size;
  const auto take = [&](std::string_view name, std::uint64_t length, std::size_t page) -> Result<void> {
    const auto found = std::find_if(descriptors.begin(), descriptors.end(),
                                    [&](const auto& entry) { return entry.name == name && entry.id == 0; });
    if (found == descriptors.end()) return machine_error(fmt::format("block '{}' was not handed over", name));
    UniqueFd fd = std::move(found->fd);
    descriptors.erase(found);
    auto block = ram::RamBlock::adopt(std::string(name), std::move(fd), length, page);
    if (!block) return std::move(block).error().with(fmt::format("block '{}'", name));
    return ram_.add(std::move(*block));
  };
  MD_CHECK(take(synthetic_ram_name, options.ram, options.page_size));
  MD_CHECK(take(synthetic_rom_name, synthetic_rom_bytes, ram::page_size));
  return watch_memory(options);
}

Result<void> SyntheticMachine::watch_memory(const SyntheticOptions& options) {
  for (std::size_t i = 0; i < ram_.size(); ++i) {
    MD_TRY(auto view, ram::Mapping::of_fd(ram_.at(i).fd(), ram_.at(i).length()));
    views_.push_back(std::move(view));
  }
  space_ = std::make_unique<ram::LocalSpace>(std::span<const ram::Mapping>(views_));
  MD_TRY(dirty_log_, ram::make_dirty_log(ram_, *space_, options.dirty_log));
  return {};
}

Result<std::vector<cpr::NamedDescriptor>> SyntheticMachine::share_descriptors() {
  std::vector<cpr::NamedDescriptor> out;
  for (std::size_t i = ram_.size(); i-- > 0;) {
    UniqueFd copy(::fcntl(ram_.at(i).fd(), F_DUPFD_CLOEXEC, 0));
    if (!copy) return Error::from_errno(fmt::format("hand the memory of block '{}' over", ram_.at(i).name()));
    out.push_back({ram_.at(i).name(), 0, std::move(copy)});
  }
  return out;
}

GuestShape SyntheticMachine::shape() const {
  const synthetic::GuestState& guest = devices_.guest;
  return {guest.ram_bytes / ram::page_size, guest.working_bytes / ram::page_size, guest.touched_bytes / ram::page_size,
          guest.threads, guest.seed};
}

// The first content, written where the guest writes.
void SyntheticMachine::fill() {
  const GuestShape guest = shape();
  const PagePlaces places(guest);
  const unsigned workers = std::clamp(std::thread::hardware_concurrency(), 1U, fill_threads_max);
  const auto fill_part = [&](unsigned part) {
    const std::uint64_t end = guest.touched_pages * (part + 1) / workers;
    for (std::uint64_t logical = guest.touched_pages * part / workers; logical < end; ++logical) {
      const std::uint64_t page = places.physical(logical);
      write_page(views_[ram_block].data() + page * ram::page_size, {page_number(ram_block, page), 0, guest.seed});
    }
  };
  std::vector<std::thread> threads;
  for (unsigned part = 1; part < workers; ++part) threads.emplace_back(fill_part, part);
  fill_part(0);
  for (std::thread& thread : threads) thread.join();
  for (std::uint64_t page = 0; page < ram_.at(rom_block).pages(); ++page) {
    write_page(views_[rom_block].data() + page * ram::page_size, {page_number(rom_block, page), 0, guest.seed});
  }
}

void SyntheticMachine::adopt(synthetic::Devices devices) {
  devices_ = std::move(devices);
  synthetic::GuestThreads::Counters counters;
  counters.writes.assign(devices_.guest.writes.begin(), devices_.guest.writes.begin() + devices_.guest.threads);
  counters.ticks = devices_.clock.ticks;
  counters.running_time = devices_.clock.running_time;
  threads_.reset();
  threads_ = std::make_unique<synthetic::GuestThreads>(shape(), views_[ram_block].data(), devices_.guest.dirty_rate,
                                                       std::move(counters), instance_, log_.get());
  threads_->set_throttle(throttle_);
}

// After a pause: what the threads counted becomes the devices' state.
void SyntheticMachine::take_counters() {
  const auto counters = threads_->counters();
  std::copy(counters.writes.begin(), counters.writes.end(), devices_.guest.writes.begin());
  const bool ran = counters.ticks != devices_.clock.ticks;
  devices_.clock.ticks = counters.ticks;
  devices_.clock.running_time = counters.running_time;
  if (ran) devices_.settle();
}

Result<void> SyntheticMachine::resume() {
  if (!has_guest_) return machine_error("the synthetic machine is empty: it waits for an incoming migration");
  if (is_running()) return {};
  running_.store(true, std::memory_order_release);
  threads_->start();
  return {};
}

Result<void> SyntheticMachine::pause() {
  if (!is_running()) return {};
  if (!threads_->pause()) {
    return machine_error("the guest does not come to rest: it waits for memory that has not arrived yet");
  }
  running_.store(false, std::memory_order_release);
  take_counters();
  return {};
}

void SyntheticMachine::throttle(unsigned percent) noexcept {
  throttle_ = std::min(percent, 99U);
  threads_->set_throttle(throttle_);
}

std::vector<std::string> SyntheticMachine::blocked_reasons() const {
  return blockers_.reasons(vmstate::MigrationMode::normal);
}

Result<void> SyntheticMachine::check_may_leave(bool /*running*/) const {
  return blockers_.refusal(vmstate::MigrationMode::normal);
}

Result<DeviceState> SyntheticMachine::save_devices(std::string_view run_state) {
  if (is_running()) return machine_error("save devices: the synthetic machine runs");
  if (!has_guest_) return machine_error("save devices: the synthetic machine is empty");
  MD_CHECK(devices_.run_state.set(run_state));
  std::copy(instance_.begin(), instance_.end(), devices_.clock.instance.begin());
  MD_TRY(auto set, devices_.set(first_device_section));
  MD_TRY(auto saved, set.save());
  DeviceState state;
  state.description = vmstate::describe_stream(saved, ram::page_size);
  for (vmstate::SavedSection& section : saved) {
    state.sections.push_back({section.section_id, std::move(section.name), section.instance_id, section.version_id,
                              std::move(section.body), section.early});
  }
  return state;
}

Result<std::optional<std::string>> SyntheticMachine::load_devices(DeviceState state) {
  if (is_running()) return machine_error("load devices: the synthetic machine runs");
  synthetic::Devices fresh;
  MD_TRY(auto set, fresh.set(first_device_section));
  vmstate::LoadPass pass(set);
  for (const DeviceSection& section : state.sections) {
    MD_CHECK(pass.load(vmstate::SectionView{section.name, section.instance_id, section.version_id, section.body}));
  }
  if (const auto missing = pass.missing(); !missing.empty()) {
    return wire_error(fmt::format("the stream has no state for device '{}'", missing.front()));
  }
  if (fresh.guest.ram_bytes != ram_.at(ram_block).length()) {
    return machine_error(fmt::format("the guest received has {} bytes of memory, this machine {}",
                                     fresh.guest.ram_bytes, ram_.at(ram_block).length()));
  }
  if (fresh.guest.page_bytes != page_size_) {
    return machine_error(fmt::format("the guest received has pages of {} bytes, this machine of {}",
                                     fresh.guest.page_bytes, page_size_));
  }
  MD_CHECK(fresh.check_settled());
  adopt(std::move(fresh));
  has_guest_ = true;
  return std::optional<std::string>(devices_.run_state.text());
}

Result<nlohmann::json> SyntheticMachine::verify(const StopSource& stop) {
  if (is_running()) return machine_error("verify: the synthetic machine runs; stop it first");
  if (!has_guest_) return machine_error("verify: the synthetic machine is empty");
  if (const auto page = threads_->wrong_page()) {
    return machine_error(
        fmt::format("verify: the guest read page {} of '{}' and found something else than it had "
                    "written there",
                    *page, synthetic_ram_name));
  }
  const GuestShape guest = shape();
  synthetic::Ledger ledger(guest, {devices_.guest.writes.begin(), devices_.guest.writes.begin() + guest.threads});
  MD_TRY(const synthetic::Proof memory,
         synthetic::prove_block(
             ram_.at(ram_block), ram_block, guest.seed, [&](std::uint64_t page) { return ledger.generation(page); },
             ledger.pages_with_data(), stop));
  MD_TRY(const synthetic::Proof rom,
         synthetic::prove_block(
             ram_.at(rom_block), rom_block, guest.seed, [](std::uint64_t) { return std::optional<std::uint64_t>(0); },
             ram_.at(rom_block).pages(), stop));
  MD_CHECK(devices_.check_settled());
  std::uint64_t writes = 0;
  for (std::uint32_t i = 0; i < guest.threads; ++i) writes += devices_.guest.writes[i];
  return nlohmann::json{{"checked-pages", memory.checked_pages + rom.checked_pages},
                        {"pages-with-data", memory.pages_with_data + rom.pages_with_data},
                        {"writes", writes},
                        {"ticks", devices_.clock.ticks},
                        {"handovers", devices_.clock.handovers},
                        {"instance", instance_}};
}

}  // namespace migrationd
