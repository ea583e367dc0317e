// SPDX-License-Identifier: Apache-2.0
#include "daemon/machine/parked.hpp"

#include "base/limits.hpp"
#include "base/option_words.hpp"
#include "protocol/stream/globalstate.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <iterator>
#include <utility>

namespace migrationd {

ParkedMachine::ParkedMachine(MachineConfiguration configuration, std::uint32_t ram_section_id, ram::RamMap ram)
    : configuration_(std::move(configuration)), ram_section_id_(ram_section_id), ram_(std::move(ram)) {}

Result<void> ParkedMachine::resume() {
  running_.store(true, std::memory_order_relaxed);
  return {};
}

Result<void> ParkedMachine::pause() {
  running_.store(false, std::memory_order_relaxed);
  return {};
}

std::vector<DeviceSection> ParkedMachine::early_sections() const {
  std::vector<DeviceSection> early;
  std::copy_if(devices_.sections.begin(), devices_.sections.end(), std::back_inserter(early),
               [](const stream::DeviceSection& section) { return section.early; });
  return early;
}

Result<DeviceState> ParkedMachine::save_devices(std::string_view run_state) {
  DeviceState state = devices_;
  std::erase_if(state.sections, [](const stream::DeviceSection& section) { return section.early; });
  for (stream::DeviceSection& section : state.sections) {
    if (section.name != stream::globalstate_name) continue;
    MD_TRY(const std::string received, stream::read_run_state(section.body));
    // Untouched when nobody said `cont` or `stop`: every byte stays.
    if (received == run_state) continue;
    MD_TRY(section.body, stream::with_run_state(section.body, run_state));
  }
  return state;
}

Result<std::optional<std::string>> ParkedMachine::load_devices(DeviceState state) {
  std::optional<std::string> run_state;
  for (const stream::DeviceSection& section : state.sections) {
    if (section.name != stream::globalstate_name) continue;
    auto name = stream::read_run_state(section.body);
    if (!name) return std::move(name).error().with("section 'globalstate'");
    run_state = *name;
  }
  devices_ = std::move(state);
  return run_state;
}

Result<std::vector<cpr::NamedDescriptor>> ParkedMachine::share_descriptors() {
  std::vector<cpr::NamedDescriptor> out;
  const auto add = [&out](const std::string& name, std::int32_t id, int fd) -> Result<void> {
    UniqueFd own(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
    if (!own) return Error::from_errno(fmt::format("descriptor '{}': duplicate it", printable(name)));
    out.push_back({name, id, std::move(own)});
    return {};
  };
  for (const cpr::NamedDescriptor& entry : descriptors_) {
    const auto block = entry.fd ? Result<std::size_t>(0) : ram_.find(entry.name);
    if (!block) return block.error();
    MD_CHECK(add(entry.name, entry.id, entry.fd ? entry.fd.get() : ram_.at(*block).fd()));
  }
  if (!descriptors_.empty()) return out;
  // A file that has a name is opened by it (docs/formats/cpr.md). QEMU puts the newest in front; the stream has the
  // largest there, which is created first.
  for (std::size_t i = ram_.size(); i-- > 0;) {
    if (!ram_.at(i).is_named_file()) MD_CHECK(add(ram_.at(i).name(), 0, ram_.at(i).fd()));
  }
  return out;
}

Result<nlohmann::json> ParkedMachine::verify(const StopSource&) {
  return machine_error("a parked machine's memory has no pattern of ours to check; only its own guest knows it");
}

Result<MemoryFiles> parse_parked_options(std::string_view text) {
  MemoryFiles files;
  for (const OptionWord& word : option_words(text)) {
    const auto colon = word.value.find(':');
    if (word.key != "memory" || colon == std::string_view::npos || colon == 0 || colon + 1 == word.value.size()) {
      return plan_error("parked: '" + printable(word.text) + "' is not an option (memory=BLOCK:PATH)");
    }
    const std::string name(word.value.substr(0, colon));
    if (!files.emplace(name, word.value.substr(colon + 1)).second) {
      return plan_error("parked: block '" + printable(name) + "' has two files");
    }
  }
  return files;
}

Result<void> ParkedReceiver::take_descriptors(std::vector<cpr::NamedDescriptor> descriptors) {
  descriptors_ = std::move(descriptors);
  return {};
}

// Two blocks of one file would be written one over the other.
Result<void> ParkedReceiver::note_file(int fd) {
  struct stat status {};
  if (::fstat(fd, &status) != 0) return Error::from_errno("look at the descriptor");
  const std::pair file{status.st_dev, status.st_ino};
  if (std::find(files_.begin(), files_.end(), file) != files_.end()) {
    return machine_error("its memory is the same file as another block's");
  }
  files_.push_back(file);
  return {};
}

Result<std::unique_ptr<ram::RamBlock>> ParkedReceiver::take_over(const stream::RamSetupBlock& block) {
  const auto entry = std::find_if(descriptors_->begin(), descriptors_->end(), [&](const cpr::NamedDescriptor& each) {
    return each.name == block.name && each.id == 0;
  });
  if (entry == descriptors_->end()) return machine_error("no descriptor of that name came over the cpr channel");
  MD_CHECK(note_file(entry->fd.get()));
  return ram::RamBlock::take_over(block.name, std::move(entry->fd), block.used_length);
}

Result<std::unique_ptr<ram::RamBlock>> ParkedReceiver::make_block(const stream::RamSetupBlock& block) {
  if (const auto file = named_files_.find(block.name); file != named_files_.end()) {
    MD_TRY(auto made, ram::RamBlock::open_file(block.name, file->second, block.used_length));
    MD_CHECK(note_file(made->fd()));
    return made;
  }
  if (descriptors_) return take_over(block);
  // Backed by small pages whatever the sender had: a parked machine is not run, and the wire does not tell.
  return ram::RamBlock::create(block.name, block.used_length, ram::page_size);
}

Result<void> ParkedReceiver::begin(const MachineConfiguration& configuration) {
  configuration_ = configuration;
  return {};
}

Result<Machine*> ParkedReceiver::prepare_memory(std::span<const stream::RamSetupBlock> blocks,
                                                std::uint32_t ram_section_id) {
  ram::RamMap ram;
  for (const stream::RamSetupBlock& block : blocks) {
    auto made = make_block(block);
    if (!made) return std::move(made).error().with(fmt::format("block '{}'", printable(block.name)));
    (*made)->set_guest_address(block.address);
    MD_CHECK(ram.add(std::move(*made)));
  }
  for (const auto& [name, path] : named_files_) {
    if (ram.find(name)) continue;
    return machine_error(fmt::format("block '{}' shall lie in '{}', but the stream has no block of that name",
                                     printable(name), printable(path, printable_address_bytes)));
  }
  machine_ = std::make_unique<ParkedMachine>(configuration_, ram_section_id, std::move(ram));
  if (descriptors_) machine_->keep_descriptors(std::move(*descriptors_));
  return machine_.get();
}

Result<void> ParkedReceiver::keep_pages_at(std::unique_ptr<ram::PageOrigin> origin) {
  machine_->keep_pages_at(std::move(origin));
  return {};
}

void ParkedReceiver::note_switchover_start() {
  if (machine_) machine_->set_switchover_start(true);
}

}  // namespace migrationd
