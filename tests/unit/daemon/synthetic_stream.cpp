// SPDX-License-Identifier: Apache-2.0
//
// Writes a whole plain stream of a synthetic machine to a file, for synthetic_stream_test.py to walk.
//
//   synthetic_stream FILE [uuid]    "uuid": the configuration section gets its subsections, and is described
#include "daemon/machine/synthetic.hpp"
#include "protocol/stream/configuration.hpp"
#include "protocol/stream/header.hpp"
#include "protocol/stream/ram_record.hpp"
#include "protocol/stream/ram_setup.hpp"
#include "protocol/stream/sections.hpp"
#include "vmstate/configuration.hpp"

#include <fmt/format.h>

#include <chrono>
#include <fstream>
#include <thread>

using namespace migrationd;

namespace {

constexpr std::uint32_t ram_id = 1;

// Every page of every block: those that hold data as they are, the others as zero pages.
void write_pages(ByteWriter& out, ram::RamMap& ram) {
  std::array<std::byte, 512> head{};
  for (std::size_t i = 0; i < ram.size(); ++i) {
    ram::RamBlock& block = ram.at(i);
    for (std::uint64_t offset = 0; offset < block.length(); offset += ram::page_size) {
      const std::string_view name = offset == 0 ? std::string_view(block.name()) : std::string_view();
      const std::byte* page = block.engine() + offset;
      const bool zero = synthetic::page_is_zero(page);
      const std::size_t length = zero ? stream::encode_zero_record(head.data(), offset, name)
                                      : stream::encode_page_header(head.data(), offset, name);
      out.bytes(ByteView(head).first(length));
      if (!zero) out.bytes({page, ram::page_size});
    }
  }
  out.bytes(ByteView(head).first(stream::encode_eos(head.data())));
}

std::string write_configuration(ByteWriter& out, const SyntheticMachine& machine, bool with_uuid,
                                const std::string& description) {
  stream::Configuration section;
  section.machine_name = machine.configuration().machine_name;
  if (!with_uuid) {
    stream::encode_configuration(out, section);
    return description;
  }
  section.capabilities = {std::string(stream::capability_ignore_shared)};
  section.uuid.emplace();
  stream::encode_configuration(out, section);
  const std::string_view capabilities[] = {stream::capability_ignore_shared};
  auto described = vmstate::make_configuration(section.machine_name, std::nullopt, capabilities,
                                               std::span<const std::byte, 16>(*section.uuid));
  vmstate::Layout layout;
  if (!described || !vmstate::save_configuration(*described, &layout)) std::abort();
  return vmstate::with_configuration(description, layout);
}

Result<Bytes> make_stream(bool with_uuid) {
  MD_TRY(const auto options,
         parse_synthetic_options("synthetic,ram=4M,working-set=256K,touched=128K,dirty-rate=20M,threads=2"));
  MD_TRY(const auto machine, SyntheticMachine::create(options, SyntheticStart::filled));
  MD_CHECK(machine->resume());
  std::this_thread::sleep_for(std::chrono::milliseconds(15));
  MD_CHECK(machine->pause());
  MD_TRY(const auto never, StopSource::make());
  MD_CHECK(machine->verify(*never));
  MD_TRY(const DeviceState state, machine->save_devices("running"));

  ByteWriter out;
  stream::encode_header(out);
  const std::string description = write_configuration(out, *machine, with_uuid, *state.description);
  stream::encode_section_start(out, {ram_id, "ram", 0, 4});
  std::vector<stream::RamSetupBlock> blocks;
  for (std::size_t i = 0; i < machine->ram().size(); ++i) {
    auto& block = blocks.emplace_back();
    block.name = machine->ram().at(i).name();
    block.used_length = machine->ram().at(i).length();
    if (with_uuid) block.address = 0;
  }
  stream::encode_ram_setup(out, blocks);
  std::array<std::byte, 16> eos{};
  out.bytes(ByteView(eos).first(stream::encode_eos(eos.data())));
  stream::encode_footer(out, ram_id);
  stream::encode_section_end(out, ram_id);
  write_pages(out, machine->ram());
  stream::encode_footer(out, ram_id);
  for (const DeviceSection& section : state.sections) stream::encode_device_section(out, section);
  stream::encode_eof(out);
  stream::encode_description(out, description);
  return std::move(out).take();
}

}  // namespace

int main(int count, char** words) {
  if (count < 2) return 2;
  if (const auto probe = ram::probe_dirty_log(ram::DirtyLogKind::automatic); !probe) {
    fmt::print("no dirty log here: {}\n", probe.error().text());
    return 77;
  }
  const auto bytes = make_stream(count > 2);
  if (!bytes) {
    fmt::print("{}\n", bytes.error().text());
    return 1;
  }
  std::ofstream file(words[1], std::ios::binary);
  file.write(reinterpret_cast<const char*>(bytes->data()), static_cast<std::streamsize>(bytes->size()));
  return file.good() ? 0 : 1;
}
