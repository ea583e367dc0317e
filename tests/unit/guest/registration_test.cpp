// SPDX-License-Identifier: Apache-2.0
// What a program may register: blocks and tables are proved when they are added, with a sentence on what is wrong.
#include "guest/memfd.hpp"
#include "guest/sealed_state.hpp"
#include "tests/unit/guest/recorder.hpp"

#include <sys/mman.h>

using namespace migrationd;
using namespace migrationd::guest;
using namespace migrationd::guest::test;

namespace {

struct Inner {
  std::uint32_t a;
  std::uint32_t b;
};
struct State {
  std::uint32_t one;
  std::uint16_t count;
  Inner inner[3];
  std::uint8_t bytes[16];
  double ratio;
  bool flag;
  std::uint64_t wide[2];
};

md_device table(const char* name, const md_field* fields) {
  md_device out{};
  out.name = name;
  out.version = 1;
  out.fields = fields;
  out.state_size = sizeof(State);
  return out;
}

const md_field inner_fields[] = {MD_U32(Inner, a), MD_U32(Inner, b), MD_END};
const md_device inner = [] {
  md_device out = table("inner", inner_fields);
  out.state_size = sizeof(Inner);
  return out;
}();

GuestHandle new_guest() {
  GuestHandle guest(md_guest_new("m", nullptr, nullptr));
  REQUIRE(guest);
  return guest;
}

// Why the table is not taken; empty: it is.
std::string fault_of(const md_device& device) {
  const GuestHandle guest = new_guest();
  State state{};
  if (md_guest_add_device(guest.get(), &device, &state, nullptr, MD_ANY_INSTANCE) == 0) return {};
  return md_guest_error(guest.get());
}
std::string fault_of(std::vector<md_field> fields) {
  fields.push_back(MD_END);
  const md_device device = table("dev", fields.data());
  return fault_of(device);
}
md_field changed(md_field field, const std::function<void(md_field&)>& change) {
  change(field);
  return field;
}

}  // namespace

TEST_CASE("GuestTables.every_type_and_shape_is_saved_and_described") {
  const GuestHandle guest = new_guest();
  FakeDaemon daemon;
  State state{1, 2, {{1, 2}, {3, 4}, {5, 6}}, {9, 8}, 0.5, true, {1, 2}};
  std::vector<md_field> fields{MD_U32(State, one),
                               MD_U16(State, count),
                               MD_STRUCT_ARRAY(State, inner, &inner),
                               changed(MD_COUNTED(State, inner, MD_TYPE_STRUCT, count, MD_TYPE_U16),
                                       [](md_field& f) {
                                         f.name = "some";
                                         f.nested = &inner;
                                       }),
                               MD_BUFFER(State, bytes),
                               MD_DOUBLE(State, ratio),
                               MD_BOOL(State, flag),
                               MD_ARRAY(State, wide, MD_TYPE_U64),
                               MD_UNUSED(3),
                               changed(MD_U32(State, one),
                                       [](md_field& f) {
                                         f.name = "absent";
                                         f.exists = [](const void*, std::uint32_t) { return false; };
                                       }),
                               MD_END};
  static const md_field part_fields[] = {MD_U16(State, count), MD_END};
  static const md_device part = [] {
    md_device out = table("dev/part", part_fields);
    out.needed = [](const void* object) { return static_cast<const State*>(object)->flag; };
    return out;
  }();
  const md_device* const parts[] = {&part, nullptr};
  md_device device = table("dev", fields.data());
  device.subsections = parts;
  device.early = 1;
  REQUIRE(md_guest_add_device(guest.get(), &device, &state, nullptr, 4) == 0);
  REQUIRE(md_guest_new_block(guest.get(), "ram", 4096, 4096, MD_TRACK_NONE) != nullptr);
  const Registration told = attach(guest.get(), daemon, MD_PAUSED);
  CHECK(told.devices[0].instance == 4);
  CHECK(told.devices[0].early);
  auto saved = daemon.call(Type::save, Empty{});
  REQUIRE(saved.has_value());
  REQUIRE(saved->fds.size() == 1);
  const auto sections = decode_state(*read_state(saved->fds[0].get(), decode<StateLength>(saved->body)->length));
  REQUIRE(sections.has_value());
  const StateSection& section = sections->at(0);
  CHECK(section.early);
  CHECK(section.body.size() == 4 + 2 + 24 + 16 + 16 + 8 + 1 + 16 + 3 + (1 + 1 + 8 + 4 + 2));
  CHECK(section.description.find(
            R"({"name": "inner", "array_len": 3, "type": "struct", "struct": {"vmsd_name": "inner")") !=
        std::string::npos);
  CHECK(section.description.find(R"("subsections": [{"vmsd_name": "dev/part")") != std::string::npos);
  CHECK(section.description.find("absent") == std::string::npos);
  const State before = state;
  state = State{};
  const auto file = make_state(*encode_state(*sections));
  const int fds[] = {file->get()};
  CHECK(daemon.why_not(Type::load, StateLength{encode_state(*sections)->size()}, fds).empty());
  CHECK(state.inner[2].b == 6);
  CHECK(state.ratio == before.ratio);
  CHECK(state.flag);
  CHECK(state.wide[1] == 2);
}

TEST_CASE("GuestTables.what_is_wrong_with_a_table_is_said_in_a_sentence") {
  CHECK(fault_of(std::vector<md_field>{MD_U32(State, one)}).empty());
  const auto field = [](const std::function<void(md_field&)>& change) {
    return fault_of({changed(MD_U32(State, one), change)});
  };
  CHECK(field([](md_field& f) { f.name = nullptr; }) == "table 'dev': field 0 '': has no name");
  CHECK(field([](md_field& f) { f.name = "a\n"; }).find("is not 1 to 127 bytes of printable ASCII") !=
        std::string::npos);
  CHECK(field([](md_field& f) { f.size = 8; }) ==
        "table 'dev': field 0 'one': has 8 bytes, but U32 has 4 (arrays are described by MD_ARRAY)");
  CHECK(field([](md_field& f) { f.count = 0; }) ==
        "table 'dev': field 0 'one': has no elements (count is 0; 1 for no array)");
  CHECK(field([](md_field& f) { f.version = 2; }) ==
        "table 'dev': field 0 'one': its version 2 is above the table's 1");
  CHECK(field([](md_field& f) { f.offset = sizeof(State); }).find("outside the state") != std::string::npos);
  CHECK(field([](md_field& f) { f.offset = ~std::size_t{0}; }) ==
        "table 'dev': field 0 'one': its offset, or that of its count, is above 1 GiB");
  CHECK(field([](md_field& f) { f.type = static_cast<md_type>(99); }) ==
        "table 'dev': field 0 'one': type 99 is none of enum md_type");
  CHECK(field([](md_field& f) { f.counted = 1; }).find("count_type is none of") != std::string::npos);
  CHECK(fault_of({MD_U32(State, one), MD_U32(State, one)}) == "table 'dev': two fields have one name");
  CHECK(fault_of({MD_COUNTED(State, wide, MD_TYPE_U64, count, MD_TYPE_U16), MD_U16(State, count)}) ==
        "table 'dev': a count stands behind its array, so that it would be loaded too late");
  CHECK(fault_of({MD_STRUCT(State, inner[0], nullptr)}).find("is a struct, but `nested` is NULL") != std::string::npos);
}

TEST_CASE("GuestTables.wrong_devices_are_refused") {
  static const md_field none[] = {MD_END};
  md_device device = table("dev", none);
  CHECK(fault_of(device).empty());
  device.fields = nullptr;
  CHECK(fault_of(device) == "table 'dev': has no fields; one without state has a list of MD_END alone");
  device = table(nullptr, none);
  CHECK(fault_of(device) == "table '': has no name");
  device = table("dev", none);
  device.minimum_version = 2;
  CHECK(fault_of(device) == "table 'dev': the minimum version is above the version");
  const md_device foreign = table("other/part", none);
  const md_device* const parts[] = {&foreign, nullptr};
  device = table("dev", none);
  device.subsections = parts;
  CHECK(fault_of(device) == "table 'dev': a subsection's name does not begin with the table's");
  const md_field within[] = {MD_U32(State, one), MD_END};
  md_device larger = table("dev/larger", within);
  larger.state_size = sizeof(State) + 8;
  const md_device* const larger_parts[] = {&larger, nullptr};
  device = table("dev", none);
  device.state_size = sizeof(State);
  device.subsections = larger_parts;
  CHECK(fault_of(device).find("but its subsection 'dev/larger' describes") != std::string::npos);
  // One that holds itself.
  md_field loop[] = {MD_STRUCT(State, inner, nullptr), MD_END};
  device = table("dev", loop);
  loop[0].nested = &device;
  CHECK(fault_of(device).find("nested too deep, or in itself") != std::string::npos);
  CHECK(md_guest_add_device(new_guest().get(), nullptr, nullptr, nullptr, 0) == -1);
}

TEST_CASE("GuestTables.instances_and_paths_tell_devices_apart") {
  const GuestHandle guest = new_guest();
  static const md_field none[] = {MD_END};
  static const md_device device = table("dev", none);
  State state{};
  REQUIRE(md_guest_add_device(guest.get(), &device, &state, nullptr, 3) == 0);
  CHECK(md_guest_add_device(guest.get(), &device, &state, nullptr, 3) == -1);
  CHECK(std::string(md_guest_error(guest.get())) == "device 'dev' instance 3 is there already");
  CHECK(md_guest_add_device(guest.get(), &device, &state, std::string(300, 'x').c_str(), 0) == -1);
  FakeDaemon daemon;
  REQUIRE(md_guest_add_device(guest.get(), &device, &state, nullptr, MD_ANY_INSTANCE) == 0);
  CHECK(attach(guest.get(), daemon, MD_PAUSED).devices[1].instance == 4);
}

TEST_CASE("GuestOpaque.bytes_are_saved_described_and_loaded_and_refusals_have_sentences") {
  struct Blob {
    md_guest* guest = nullptr;
    std::string content = "hello";
    bool refuses = false;
    std::size_t length = 0;
  } blob;
  const GuestHandle guest = new_guest();
  blob.guest = guest.get();
  md_opaque opaque{};
  opaque.size = sizeof opaque;
  opaque.name = "blob";
  opaque.version = 1;
  CHECK(md_guest_add_opaque(guest.get(), &opaque, &blob, nullptr, 0) == -1);
  CHECK(std::string(md_guest_error(guest.get())) == "opaque device 'blob': save or load is NULL");
  opaque.save = [](void* user, md_writer* writer) {
    Blob& self = *static_cast<Blob*>(user);
    if (self.refuses) return md_guest_refuse(self.guest, "not now");
    for (const char& c : self.content) md_write(writer, &c, 1);
    return 0;
  };
  opaque.load = [](void* user, const void* bytes, std::size_t length, std::uint32_t version) {
    Blob& self = *static_cast<Blob*>(user);
    self.content.assign(static_cast<const char*>(bytes), length);
    return version == 1 && length < 100 ? 0 : -1;
  };
  REQUIRE(md_guest_add_opaque(guest.get(), &opaque, &blob, nullptr, 0) == 0);
  FakeDaemon daemon;
  attach(guest.get(), daemon, MD_PAUSED);
  auto saved = daemon.call(Type::save, Empty{});
  REQUIRE(saved->fds.size() == 1);
  auto sections = decode_state(*read_state(saved->fds[0].get(), decode<StateLength>(saved->body)->length));
  REQUIRE(sections.has_value());
  CHECK(as_text(sections->at(0).body) == "hello");
  CHECK(sections->at(0).description ==
        R"("vmsd_name": "blob", "version": 1, "fields": [{"name": "state", "type": "buffer", "size": 5}])");
  blob.content.clear();
  const auto load = [&] {
    const auto bytes = *encode_state(*sections);
    const auto file = make_state(bytes);
    const int fds[] = {file->get()};
    return daemon.why_not(Type::load, StateLength{bytes.size()}, fds);
  };
  CHECK(load().empty());
  CHECK(blob.content == "hello");
  sections->at(0).body.resize(100);
  CHECK(load() == "load device 'blob' instance 0: load() refused");
  blob.refuses = true;
  CHECK(daemon.why_not(Type::save, Empty{}) == "save device 'blob' instance 0: save() refused: not now");
}

TEST_CASE("GuestTables.hooks_that_refuse_are_named") {
  static md_guest* asked = nullptr;
  static const md_field fields[] = {MD_U32(State, one), MD_END};
  md_device device = table("dev", fields);
  device.pre_save = [](void*) { return md_guest_refuse(asked, "the disk is on fire"); };
  device.post_load = [](void* state, std::uint32_t) { return static_cast<State*>(state)->one == 13 ? -1 : 0; };
  const GuestHandle guest = new_guest();
  asked = guest.get();
  State state{};
  REQUIRE(md_guest_add_device(guest.get(), &device, &state, nullptr, 0) == 0);
  FakeDaemon daemon;
  attach(guest.get(), daemon, MD_PAUSED);
  CHECK(daemon.why_not(Type::save, Empty{}) ==
        "save device 'dev' instance 0: pre-save failed: dev: pre_save() of 'dev' refused: the disk is on fire");
  StateSection section{"dev", 0, 1, false, Bytes(4), ""};
  section.body[3] = std::byte{13};
  const auto bytes = *encode_state({section});
  const auto file = make_state(bytes);
  const int fds[] = {file->get()};
  CHECK(daemon.why_not(Type::load, StateLength{bytes.size()}, fds) ==
        "load device 'dev' instance 0: post_load() of 'dev' refused");
}

TEST_CASE("GuestBlocks.foreign_memory_is_proved") {
  const GuestHandle guest = new_guest();
  const auto fault = [&](void* address, std::uint64_t length, int fd) {
    if (md_guest_add_block(guest.get(), "mine", address, length, fd, MD_TRACK_NONE) == 0) return std::string();
    return std::string(md_guest_error(guest.get()));
  };
  constexpr std::uint64_t length = 16 * 4096;
  const UniqueFd loose(::memfd_create("loose", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  REQUIRE(::ftruncate(loose.get(), length) == 0);
  void* const loose_at = ::mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_SHARED, loose.get(), 0);
  CHECK(fault(loose_at, length, loose.get()) == "block 'mine': the memfd is not sealed with F_SEAL_SHRINK");
  ::munmap(loose_at, length);

  const auto memory = make_memory("good", length, 4096);
  REQUIRE(memory.has_value());
  auto* const at =
      static_cast<std::byte*>(::mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_SHARED, memory->get(), 0));
  CHECK(fault(at, length / 2, memory->get()) == "block 'mine': the memfd has 65536 bytes, not 32768");
  CHECK(fault(at + 1, length, memory->get()).find("is not aligned to pages of 4096") != std::string::npos);
  CHECK(fault(at + 4096, length, memory->get()).find("is another part of it") != std::string::npos);
  void* const private_at = ::mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE, memory->get(), 0);
  CHECK(fault(private_at, length, memory->get()).find("has the access rw-p") != std::string::npos);
  ::munmap(private_at, length);
  void* const read_at = ::mmap(nullptr, length, PROT_READ, MAP_SHARED, memory->get(), 0);
  CHECK(fault(read_at, length, memory->get()).find("has the access r--s") != std::string::npos);
  ::munmap(read_at, length);
  void* const other_at = ::mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK(fault(other_at, length, memory->get()).find("belongs to something else") != std::string::npos);
  ::munmap(other_at, length);
  CHECK(fault(at, length, 0).find("is no memfd") != std::string::npos);
  CHECK(fault(at, length, memory->get()).empty());
  CHECK(fault(at, length, memory->get()) == "block 'mine': there is one of that name already");
  CHECK(md_guest_add_block(guest.get(), "again", at, length, memory->get(), MD_TRACK_NONE) == -1);
  CHECK(std::string(md_guest_error(guest.get())) == "block 'again': overlaps block 'mine'");
  CHECK(md_guest_block_fd(guest.get(), "mine") >= 0);
  CHECK(md_guest_bitmap(guest.get(), "mine", nullptr) == nullptr);
  ::munmap(at, length);
}

TEST_CASE("GuestBlocks.wrong_sizes_names_and_numbers_are_refused") {
  const GuestHandle guest = new_guest();
  const auto fault = [&](const char* name, std::uint64_t length, std::uint32_t page) {
    if (md_guest_new_block(guest.get(), name, length, page, MD_TRACK_NONE) != nullptr) return std::string();
    return std::string(md_guest_error(guest.get()));
  };
  CHECK(fault(nullptr, 4096, 4096) == "block '': its name is not 1 to 255 bytes of printable ASCII");
  CHECK(fault("a\x1b", 4096, 4096) == "block 'a\\x1b': its name is not 1 to 255 bytes of printable ASCII");
  CHECK(fault("a", 4096, 8192) == "block 'a': page size 8192 is neither 4096 nor 2097152");
  CHECK(fault("a", 4097, 4096).find("is not a multiple of 4096") != std::string::npos);
  CHECK(fault("a", 0, 4096).find("length 0") != std::string::npos);
  CHECK(fault("a", std::uint64_t{1} << 63, 4096).find("is not a multiple of") != std::string::npos);
  for (std::size_t i = 0; i < guest_blocks; ++i) CHECK(fault(std::to_string(i).c_str(), 4096, 4096).empty());
  CHECK(fault("one more", 4096, 4096) == "block 'one more': there are 256 blocks already");
  CHECK(md_guest_new_block(guest.get(), "b", 4096, 4096, static_cast<md_tracking>(9)) == nullptr);
}

TEST_CASE("GuestLibrary.null_pointers_and_wrong_sizes_are_refused") {
  CHECK(md_guest_new(nullptr, nullptr, nullptr) == nullptr);
  CHECK(std::string(md_guest_error(nullptr)) == "machine name: not 1 to 255 bytes of printable ASCII");
  md_callbacks none{};
  CHECK(md_guest_new("m", &none, nullptr) == nullptr);
  CHECK(md_guest_attach(nullptr, "/x", MD_EMPTY) == -1);
  CHECK(md_guest_dispatch(nullptr) == -1);
  md_guest_free(nullptr);
  const GuestHandle guest = new_guest();
  CHECK(md_guest_attach(guest.get(), nullptr, MD_EMPTY) == -1);
  CHECK(md_guest_attach(guest.get(), "/nowhere/at/all", MD_EMPTY) == -1);
  CHECK(std::string(md_guest_error(guest.get())) == "connect to '/nowhere/at/all': No such file or directory");
  CHECK(md_guest_attach(guest.get(), std::string(200, 'x').c_str(), MD_EMPTY) == -1);
  CHECK(md_guest_attach(guest.get(), "/x", 3) == -1);
  CHECK(md_guest_detach(guest.get()) == 0);
  CHECK(md_guest_set_vcpus(guest.get(), 1 << 20) == -1);
}
